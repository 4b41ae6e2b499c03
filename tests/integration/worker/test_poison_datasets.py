"""Datasets that hurt their reader: each fails with a reason that helps, and the pool reads on."""

import gzip
import json
import shlex
import sys
from pathlib import Path
from uuid import UUID

import pytest

from .conftest import Site, Start, until

READER = {"trainer_command": ""}  # the product's own, not the stub
POISONED = {"trainer_command": shlex.join([sys.executable, str(Path(__file__).with_name("poisoned_reader.py"))])}
ROWS = b"".join(b'{"text": "row %d"}\n' % number for number in range(300))
DEEP = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"


async def ended(site: Site, dataset_id: UUID) -> dict[str, object] | None:
    """The dataset's error once it is read; None where it is ready."""

    async def read() -> bool:
        return bool(await site.pool.fetchval("select status <> 'validating' from datasets where id = $1", dataset_id))

    await until(read, "the dataset is no longer validating", 60)
    row = await site.pool.fetchrow("select status, error from datasets where id = $1", dataset_id)
    assert (row["status"] == "ready") == (row["error"] is None)
    return row["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("filename", "content", "code", "words"),
    [
        ("bomb.jsonl.gz", gzip.compress(bytes(100 * 2**20)), "dataset_too_large", "expand"),
        ("line.jsonl", b'{"text": "' + b"x" * (9 * 2**20) + b'"}\n', "dataset_too_large", "the limit is 8388608"),
        ("deep.jsonl", DEEP, "invalid_row", "nest"),
    ],
    ids=["bomb", "line", "deep"],
)
async def test_a_file_past_a_limit_fails_its_dataset_with_the_limit_and_the_next_is_read(
    site: Site, start_daemon: Start, filename: str, content: bytes, code: str, words: str
) -> None:
    poison, _ = await site.ingest(content + (ROWS if filename.endswith("l") else b""), filename)
    neighbour, _ = await site.ingest(ROWS)
    await start_daemon(**READER)
    error = await ended(site, poison)
    assert error is not None
    assert error["code"] == code
    assert words in json.dumps(error)
    assert await site.pool.fetchval("select retries from jobs where dataset_id = $1", poison) == 0
    assert await ended(site, neighbour) is None


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [("hang", "trainer_stalled", "poisoned_reader.py"), ("kill", "trainer_crashed", "runs out of memory")],
)
async def test_rows_that_hang_or_kill_the_reader_fail_their_dataset_at_last_and_the_next_is_read(
    site: Site, start_daemon: Start, row: str, code: str, words: str
) -> None:
    poison, _ = await site.ingest(b'{"text": "%s"}\n' % row.encode() + ROWS)
    neighbour, _ = await site.ingest(ROWS)
    await start_daemon(**POISONED, stall_s=0.4)
    job_id = await site.pool.fetchval("select id from jobs where dataset_id = $1", poison)
    for crash in (1, 2):
        await site.has_event(job_id, "interrupted", crash)
        await site.be_due(job_id)
    error = await ended(site, poison)
    assert error is not None
    assert error["code"] == "retry_budget_spent"
    assert words in str(error["message"])
    assert [one["code"] for one in error["errors"]] == [code]  # type: ignore[attr-defined]
    assert await ended(site, neighbour) is None
    assert await site.pool.fetchrow("select failures, drain_requested_at from workers") == (0, None)
