"""What jobs need before there are any: accounts with keys, a base model and a dataset, straight into the stores."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID, uuid4

import msgspec
from fusion_core import s3_keys
from fusion_core.api_keys import SCOPES, new_secret, secret_sha256, visible_prefix
from fusion_core.db.migrate import migrate
from fusion_core.db.pool import Connection, connect, queries
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import FileEntry, Manifest
from fusion_local.stack import Stack

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


class Account(NamedTuple):
    """A customer: its key, a dataset of its own, and the base model that its jobs grow."""

    name: str
    id: UUID
    secret: str
    dataset_id: UUID
    base_model_id: UUID


async def prepare(stack: Stack, names: tuple[str, ...]) -> tuple[Account, ...]:
    """Migrate, and make accounts whose base model has no weights: for trainers that read none."""
    await migrate(stack.database_url())
    connection = await connect(stack.database_url(), application_name="faults")
    try:
        async with Storage(stack.settings()) as storage:
            base_model_id = await _base_model(connection, storage)
            rows = {"train": [{"text": "train"}], "heldout": [{"text": "heldout"}]}
            accounts = [await _account(connection, storage, name, base_model_id, rows) for name in names]
    finally:
        await connection.close()
    return tuple(accounts)


async def prepare_engine(stack: Stack, name: str, base_model_id: UUID, texts: Sequence[str]) -> Account:
    """An account for the real trainer, with text to learn."""
    rows = [{"text": text} for text in texts]
    split = {"train": rows[: -len(rows) // 10], "heldout": rows[-len(rows) // 10 :]}
    connection = await connect(stack.database_url(), application_name="faults")
    try:
        async with Storage(stack.settings()) as storage:
            return await _account(connection, storage, name, base_model_id, split)
    finally:
        await connection.close()


async def _put(storage: Storage, key: str, content: bytes) -> FileEntry:
    await storage.put_bytes(key, content)
    return FileEntry(key.rsplit("/", 1)[-1], len(content), hashlib.sha256(content).hexdigest())


async def _base_model(connection: Connection, storage: Storage) -> UUID:
    base_model_id = uuid4()
    prefix = s3_keys.base_model(base_model_id)
    files = (
        await _put(storage, f"{prefix}/config.json", msgspec.json.encode(CONFIG)),
        await _put(storage, f"{prefix}/model.safetensors", b"base weights"),
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


async def _account(
    connection: Connection,
    storage: Storage,
    name: str,
    base_model_id: UUID,
    rows: Mapping[str, Sequence[Mapping[str, str]]],
) -> Account:
    account = await queries.insert_account(connection, name=name)
    secret = new_secret()
    await queries.insert_api_key(
        connection,
        account_id=account["id"],
        name=name,
        prefix=visible_prefix(secret),
        secret_sha256=secret_sha256(secret),
        scopes=list(SCOPES),
        expires_at=None,
    )
    dataset = await queries.insert_dataset(connection, account_id=account["id"], name="rows")
    for split, held in rows.items():
        key = f"jobs/{dataset['id']}/{split}-00000.jsonl"
        file = await _put(storage, key, b"".join(msgspec.json.encode(row) + b"\n" for row in held))
        await queries.insert_shard(
            connection,
            dataset_id=dataset["id"],
            split=split,
            ordinal=0,
            s3_key=key,
            bytes=file.size,
            rows=len(held),
            sha256=file.sha256,
        )
    count, heldout = sum(map(len, rows.values())), len(rows["heldout"])
    await queries.dataset_ready(
        connection, dataset_id=dataset["id"], shard_count=2, bytes=40, rows=count, heldout_rows=heldout
    )
    return Account(name, account["id"], secret, dataset["id"], base_model_id)
