"""A look into a dataset: its first rows, and how many tokens it has for a base model."""

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_core.trainer_protocol import FileEntry, Manifest
from fusion_http.problem_details import ProblemError
from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from fusion_api.auth import Caller, needs
from fusion_api.base_models import find_base
from fusion_api.datasets import ready_dataset
from fusion_api.services import Services

PREVIEW_BYTES = 2**20
COUNTED_BYTES = 8 * 2**20
TOKENIZER_BYTES = 64 * 2**20
TOKENIZER_FILE = "tokenizer.json"


class Preview(msgspec.Struct, frozen=True):
    """The first rows as they are trained on; `truncated` when a limit of bytes cut the list short."""

    dataset_id: UUID
    rows: list[dict[str, Any]]
    truncated: bool


class TokenCount(msgspec.Struct, frozen=True):
    """`exact` is false when a large dataset's count was projected from its first eight megabytes."""

    dataset_id: UUID
    base_model_id: UUID
    tokens: int
    exact: bool


@get(
    "/datasets/{dataset_id:uuid}/preview",
    guards=[needs("read", "datasets")],
    summary="The first rows of a dataset",
    problems=("dataset_not_ready",),
)
async def preview_dataset(
    dataset_id: FromPath[UUID],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    rows: Annotated[int, QueryParameter(ge=1, le=100)] = 10,
) -> Preview:
    await ready_dataset(services, caller, dataset_id)
    found: list[dict[str, Any]] = []
    content, whole = await _first_bytes(services, dataset_id, PREVIEW_BYTES)
    lines = content.split(b"\n")
    for line in lines if whole else lines[:-1]:
        if line and len(found) < rows:
            found.append(msgspec.json.decode(line))
    return Preview(dataset_id, found, len(found) < rows and not whole)


@get(
    "/datasets/{dataset_id:uuid}/tokens",
    guards=[needs("read", "datasets")],
    summary="How many tokens a dataset has for a base model",
    problems=(
        "dataset_not_ready",
        "tokenizer_unreadable",
    ),
)
async def count_tokens(
    dataset_id: FromPath[UUID],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    base_model_id: Annotated[UUID, QueryParameter(description="a catalog model or one of your own")],
) -> TokenCount:
    await ready_dataset(services, caller, dataset_id)
    tokens, exact = await tokens_of(services, caller, dataset_id, base_model_id)
    return TokenCount(dataset_id, base_model_id, tokens, exact)


async def tokens_of(services: Services, caller: Caller, dataset_id: UUID, base_model_id: UUID) -> tuple[int, bool]:
    """(tokens of the training rows, is that exact); counted once for each tokenizer.

    Raises ProblemError not_found, or tokenizer_unreadable when the base has no fast tokenizer.
    """
    base = await find_base(services, caller, base_model_id)
    files = {entry.rel: entry for entry in msgspec.convert(base.manifest, Manifest).files}
    entry: FileEntry | None = files.get(TOKENIZER_FILE)
    if entry is None or entry.size > TOKENIZER_BYTES:
        raise ProblemError("tokenizer_unreadable", f"{base.name} has no {TOKENIZER_FILE} that can be read here")
    known = await queries.get_dataset_tokens(services.pool, dataset_id=dataset_id, tokenizer_sha256=entry.sha256)
    if known is None:
        tokenizer = await services.storage.get_bytes(f"{base.s3_prefix}/{TOKENIZER_FILE}", limit=TOKENIZER_BYTES)
        content, whole = await _first_bytes(services, dataset_id, COUNTED_BYTES)
        counted = await asyncio.to_thread(_count, tokenizer, content if whole else content.rpartition(b"\n")[0])
        total = await queries.bytes_of_training_shards(services.pool, dataset_id=dataset_id)
        tokens = counted if whole else counted * total // max(1, len(content))
        known = {"tokens": tokens, "exact": whole}
        await queries.insert_dataset_tokens(
            services.pool, dataset_id=dataset_id, tokenizer_sha256=entry.sha256, **known
        )
    return known["tokens"], known["exact"]


async def _first_bytes(services: Services, dataset_id: UUID, limit: int) -> tuple[bytes, bool]:
    """The first bytes of the training shards, one after the other, and whether that is all of them."""
    parts, size = [], 0
    shards = [row async for row in queries.shards_of_dataset(services.pool, dataset_id=dataset_id)]
    for shard in shards:  # all of them at hand: no connection to Postgres is held while S3 is read
        if shard["split"] != "train":
            continue
        async for chunk in services.storage.open(shard["s3_key"]):
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                return b"".join(parts)[:limit], False
    return b"".join(parts), True


def _count(tokenizer_json: bytes, shards: bytes) -> int:
    """Tokens of all strings of all rows, and one that ends each row."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    rows = [msgspec.json.decode(line) for line in shards.split(b"\n") if line]
    texts = ["\n".join(_strings(row)) for row in rows]
    return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)) + len(rows)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
