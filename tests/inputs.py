"""What a job starts from, by the product's own SQL: an API key, a base model, a dataset."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec
from fusion_core import s3_keys
from fusion_core.api_keys import SCOPES, new_secret, secret_sha256, visible_prefix
from fusion_core.db.pool import Connection, Pool, queries
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import FileEntry, Manifest

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}
Rows = Mapping[str, Sequence[Mapping[str, str]]]
TWO_ROWS: Rows = {"train": [{"text": "train"}], "heldout": [{"text": "heldout"}]}


async def add_key(connection: Pool | Connection, account_id: UUID, scopes: Sequence[str] = SCOPES) -> str:
    """The secret of a new key."""
    secret = new_secret()
    await queries.insert_api_key(
        connection,
        account_id=account_id,
        name="test",
        prefix=visible_prefix(secret),
        secret_sha256=secret_sha256(secret),
        scopes=list(scopes),
        expires_at=None,
    )
    return secret


async def add_base_model(connection: Pool | Connection, storage: Storage | None = None) -> UUID:
    """Of four blocks; with `storage` its files are there, without weights that could be loaded."""
    base_model_id = uuid4()
    prefix = s3_keys.base_model(base_model_id)
    files: tuple[FileEntry, ...] = (FileEntry("config.json", 1, "0" * 64),)
    if storage is not None:
        files = (
            await put(storage, f"{prefix}/config.json", msgspec.json.encode(CONFIG)),
            await put(storage, f"{prefix}/model.safetensors", b"base weights"),
        )
    await queries.insert_base_model(
        connection,
        id=base_model_id,
        family="llama",
        name="tiny",
        version="fp32",
        params=1,
        precision="fp32",
        config=CONFIG,
        s3_prefix=prefix,
        manifest=Manifest(files),
        rehearsal=None,
        content_sha256=base_model_id.hex * 2,
    )
    return base_model_id


async def add_dataset(connection: Pool | Connection, account_id: UUID) -> UUID:
    """Ready, as far as its row says: it has no shards."""
    dataset_id: UUID = (await queries.insert_dataset(connection, account_id=account_id, name="data"))["id"]
    await queries.dataset_ready(connection, dataset_id=dataset_id, shard_count=1, bytes=1, rows=2, heldout_rows=1)
    return dataset_id


async def add_stored_dataset(
    connection: Pool | Connection, storage: Storage, account_id: UUID, rows: Rows = TWO_ROWS
) -> UUID:
    """Ready, a shard for each split of `rows`."""
    dataset_id: UUID = (await queries.insert_dataset(connection, account_id=account_id, name="data"))["id"]
    for split, held in rows.items():
        key = f"jobs/{dataset_id}/{split}-00000.jsonl"
        file = await put(storage, key, b"".join(msgspec.json.encode(row) + b"\n" for row in held))
        await queries.insert_shard(
            connection,
            dataset_id=dataset_id,
            split=split,
            ordinal=0,
            s3_key=key,
            bytes=file.size,
            rows=len(held),
            sha256=file.sha256,
        )
    count, heldout = sum(map(len, rows.values())), len(rows["heldout"])
    await queries.dataset_ready(
        connection, dataset_id=dataset_id, shard_count=2, bytes=40, rows=count, heldout_rows=heldout
    )
    return dataset_id


async def put(storage: Storage, key: str, content: bytes) -> FileEntry:
    """Store bytes; answers what a manifest says of them."""
    await storage.put_bytes(key, content)
    return FileEntry(key.rsplit("/", 1)[-1], len(content), hashlib.sha256(content).hexdigest())
