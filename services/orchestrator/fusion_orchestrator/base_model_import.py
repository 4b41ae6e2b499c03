"""Importing a base model: hash, upload, and only then the row, so that a base model is complete or absent."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from fusion_core import s3_keys
from fusion_core.db.audit import By, record
from fusion_core.db.pool import Pool, queries
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import FileEntry, Manifest

from fusion_orchestrator.model_folder import CORRUPT, BaseModelRejectedError, Fault, ModelFolder

IMPORTING = ".importing"  # first object of every import, deleted after the row; what the pruner knows a broken one by
REHEARSAL_FILE = "rehearsal/rows.jsonl"

_CHUNK_BYTES = 4 * 1024 * 1024

# (stage, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]


class Imported(msgspec.Struct, frozen=True):
    """`created` is False when the same content had been imported before: then this is the older entry."""

    id: UUID
    name: str
    version: str
    created: bool


class Source(msgspec.Struct, frozen=True):
    """A local file, where it belongs below the base model's prefix, and what it was when it was hashed."""

    path: Path
    entry: FileEntry
    mtime_ns: int


async def import_base_model(
    pool: Pool,
    storage: Storage,
    by: By,
    folder: ModelFolder,
    *,
    name: str,
    version: str,
    rehearsal: Path | None,
    progress: Progress,
) -> Imported:
    """Bring a verified folder and its checked rehearsal set into the catalog. The folder is only read.

    A pool and not a connection: one that was opened before hours of uploading may be gone when the row is due.
    Raises BaseModelRejectedError when a file changes under way; OSError, TimeoutError, botocore's or asyncpg's errors.
    """
    paths = {rel: folder.root / rel for rel in folder.files}
    if rehearsal is not None:
        paths[REHEARSAL_FILE] = rehearsal
    sources = hash_files(paths, progress)
    manifest = Manifest(tuple(s.entry for s in sources if s.entry.rel != REHEARSAL_FILE))
    replayed = Manifest(tuple(s.entry for s in sources if s.entry.rel == REHEARSAL_FILE)) if rehearsal else None
    content = hashlib.sha256(msgspec.json.encode((manifest, replayed))).hexdigest()
    if (existing := await _existing(pool, content)) is not None:
        return existing
    base_model_id = uuid7()
    prefix = s3_keys.base_model(base_model_id)
    await storage.put_bytes(f"{prefix}/{IMPORTING}", b"")
    await _upload(storage, prefix, sources, progress)
    row = await _insert(
        pool,
        by,
        id=base_model_id,
        family=folder.family,
        name=name,
        version=version,
        params=folder.params,
        precision=folder.precision,
        config=folder.config,
        s3_prefix=prefix,
        manifest=manifest,
        rehearsal=replayed,
        content_sha256=content,
    )
    if row is None and (winner := await _existing(pool, content)) is not None:
        await storage.delete([f"{prefix}/{source.entry.rel}" for source in sources])
        await storage.delete([f"{prefix}/{IMPORTING}"])
        return winner
    await storage.delete([f"{prefix}/{IMPORTING}"])
    return Imported(base_model_id, name, version, created=True)


async def _insert(pool: Pool, by: By, **columns: Any) -> Any:
    """The catalog's row with its line in the audit log; None: the same content was there first."""
    async with pool.acquire() as conn, conn.transaction():
        row = await queries.insert_base_model(conn, **columns)
        if row is not None:
            made = {field: columns[field] for field in ("name", "version", "s3_prefix", "content_sha256")}
            await record(conn, by, "import_base_model", "base_model", str(columns["id"]), None, made)
        return row


async def _existing(pool: Pool, content_sha256: str) -> Imported | None:
    row = await queries.base_model_by_content(pool, content_sha256=content_sha256)
    return None if row is None else Imported(row["id"], row["name"], row["version"], created=False)


async def _upload(storage: Storage, prefix: str, sources: list[Source], progress: Progress) -> None:
    total, done = sum(source.entry.size for source in sources), 0
    progress("upload", 0, total)
    for source in sources:
        key = f"{prefix}/{source.entry.rel}"
        await storage.upload_file(source.path, key)
        head = await storage.head(key)
        stat = source.path.stat()
        if head is None or (head.size, stat.st_size, stat.st_mtime_ns) != (
            source.entry.size,
            source.entry.size,
            source.mtime_ns,
        ):
            message = "changed while it was imported; import again when nothing writes to the folder"
            raise BaseModelRejectedError([Fault(CORRUPT, source.entry.rel, message)])
        done += source.entry.size
        progress("upload", done, total)


def hash_files(paths: dict[str, Path], progress: Progress) -> list[Source]:
    """Size and SHA-256 of every file, sorted by the name it will have."""
    total, done = sum(path.stat().st_size for path in paths.values()), 0
    sources = []
    progress("hash", 0, total)
    for rel, path in sorted(paths.items()):
        digest, size, mtime_ns = hashlib.sha256(), 0, path.stat().st_mtime_ns
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                progress("hash", done + size, total)
        done += size
        sources.append(Source(path, FileEntry(rel, size, digest.hexdigest()), mtime_ns))
    return sources


def uuid7() -> UUID:
    """A UUID version 7 (RFC 9562, 5.7): 48 bits of milliseconds, then randomness, so that newer ids sort later."""
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)
