"""Reading a dataset's files by the real reader: the object that was registered and no other, and its report."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from fusion_core.storage import ObjectChangedError, ObjectMissingError, Storage

from .conftest import Site, Start, until

READER = {"trainer_command": ""}  # the product's own, not the stub
ROWS = b"".join(b'{"text": "row %d"}\n' % number for number in range(300))


async def ended(site: Site, dataset_id: UUID) -> Any:
    """The dataset's row with its report, once it is read."""
    found: list[Any] = []

    async def seen() -> bool:
        found[:] = await site.pool.fetch(
            "select d.*, r.report from datasets d left join dataset_reports r on r.dataset_id = d.id where d.id = $1",
            dataset_id,
        )
        return found[0]["status"] != "validating"

    await until(seen, "the dataset is no longer validating")
    return found[0]


async def test_a_dataset_is_read_into_shards_and_a_report(site: Site, start_daemon: Start) -> None:
    dataset_id, _ = await site.ingest(ROWS)
    await start_daemon(**READER)
    row = await ended(site, dataset_id)
    assert (row["status"], row["rows"], row["skipped_rows"]) == ("ready", 300, 0)
    assert (row["report"]["rows"], row["report"]["error_count"]) == (300, 0)
    shards = await site.pool.fetch("select * from shards where dataset_id = $1", dataset_id)
    lines = [line for shard in shards for line in (await site.storage.get_bytes(shard["s3_key"])).splitlines()]
    assert sorted(lines) == sorted(json.dumps({"text": f"row {n}"}, separators=(",", ":")).encode() for n in range(300))


async def test_a_bad_dataset_fails_with_a_glance_and_keeps_its_whole_report(site: Site, start_daemon: Start) -> None:
    dataset_id, _ = await site.ingest(ROWS + b"oops\n" * 50)
    await start_daemon(**READER)
    row = await ended(site, dataset_id)
    assert (row["status"], row["error"]["code"], len(row["error"]["errors"])) == ("failed", "invalid_row", 20)
    assert (row["skipped_rows"], len(row["report"]["errors"])) == (50, 50)


@pytest.mark.parametrize("later", [b'{"text": "something else"}\n', None])
async def test_an_upload_that_is_rewritten_or_gone_after_registration_is_never_read(
    site: Site, start_daemon: Start, later: bytes | None
) -> None:
    dataset_id, key = await site.ingest(ROWS)
    await (site.storage.delete([key]) if later is None else site.storage.put_bytes(key, later))
    await start_daemon(**READER)
    row = await ended(site, dataset_id)
    assert (row["status"], row["report"]) == ("failed", None)
    assert row["error"]["code"] == ("upload_missing" if later is None else "upload_changed")


async def test_an_object_is_read_by_its_etag_or_not_at_all(storage: Storage, tmp_path: Any) -> None:
    await storage.put_bytes("pinned", b"registered")
    head = await storage.head("pinned")
    assert head is not None
    await storage.download_file("pinned", tmp_path / "a", etag=head.etag)
    assert (tmp_path / "a").read_bytes() == b"registered"
    await storage.put_bytes("pinned", b"REGISTERED")
    with pytest.raises(ObjectChangedError):
        await storage.download_file("pinned", tmp_path / "b", etag=head.etag)
    await storage.delete(["pinned"])
    with pytest.raises(ObjectMissingError):
        await storage.download_file("pinned", tmp_path / "b", etag=head.etag)
    assert not (tmp_path / "b").exists()


async def test_an_object_that_is_rewritten_while_it_is_read_is_read_whole_or_refused(
    storage: Storage, tmp_path: Any
) -> None:
    """Its presigned URL still takes PUTs: what comes out must be one version, and that of the ETag."""
    old, new = b"a" * 24_000_000, b"b" * 24_000_000
    await storage.put_bytes("pinned", old)
    head = await storage.head("pinned")
    assert head is not None

    async def first_chunk_then_rewrite() -> AsyncIterator[bytes]:
        rewritten = False
        async for chunk in storage.open("pinned", head.etag):
            yield chunk
            if not rewritten:
                await storage.put_bytes("pinned", new)
                rewritten = True

    read = b""
    try:
        async with asyncio.timeout(30):
            async for chunk in first_chunk_then_rewrite():
                read += chunk
    except (OSError, asyncio.IncompleteReadError, ObjectChangedError, ValueError):
        return
    assert read == old
