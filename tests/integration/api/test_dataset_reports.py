"""The report of a dataset: written with its end, read in pages, gone with it; and what a bad row does."""

from pathlib import Path
from typing import Any, get_type_hints
from uuid import UUID

import msgspec
import pytest
from fusion_api.dataset_report import DatasetReport
from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt, Claimer, NewShard
from fusion_core.trainer_protocol import FileEntry, IngestInput
from fusion_data import DatasetError, Report, survey_files

GOOD = b'{"text": "one"}\n{"text": "two"}\n{"text": "two"}\n'


async def registered(customer: Any, storage: Any, content: bytes, **body: Any) -> dict[str, Any]:
    """A dataset of one upload, not yet read."""
    presigned = (await customer.send("POST", "/api/uploads/presign", json={"filename": "rows.jsonl"})).json()
    await storage.put_bytes(presigned["key"], content)
    answer = await customer.send("POST", "/api/datasets", json={"upload_ids": [presigned["upload_id"]]} | body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def claimed(customer: Any, dataset: dict[str, Any]) -> tuple[Attempt, dict[str, Any]]:
    """What a worker does first: its attempt, and the job's spec."""
    job_id = await customer.pool.fetchval("select id from jobs where dataset_id = $1", UUID(dataset["id"]))
    async with customer.pool.acquire() as conn:
        claimer = Claimer(worker_id=UUID(int=1), pool="cpu")
        job = await attempts.claim(conn, claimer, job_id, 0, UUID(int=2), 20)
    assert job is not None
    return Attempt(job.id, job.lease_epoch, UUID(int=2)), job.spec


async def read(customer: Any, dataset: dict[str, Any], content: bytes, folder: Path) -> None:
    """What a worker does: read the files by the dataset's policy and write down how it ended."""
    attempt, spec = await claimed(customer, dataset)
    (folder / "rows").write_bytes(content)
    try:
        found = survey_files([IngestInput(str(folder / "rows"), "rows.jsonl")], policy=spec["policy"]).report
    except DatasetError as error:
        report = msgspec.to_builtins(error.report)
        async with customer.pool.acquire() as conn:
            await attempts.fail(conn, attempt, error.code, str(error), report["errors"][:20], report)
        return
    shard = NewShard(split="train", ordinal=0, s3_key=dataset["id"], rows=1, file=FileEntry("a", 1, "0" * 64))
    async with customer.pool.acquire() as conn:
        await attempts.complete_ingest(conn, attempt, [shard], found.rows, 1, msgspec.to_builtins(found))


async def report_of(customer: Any, dataset: dict[str, Any], query: str = "") -> dict[str, Any]:
    answer = await customer.send("GET", f"/api/datasets/{dataset['id']}/report{query}")
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    return report


def test_the_api_shows_every_figure_of_the_reader() -> None:
    own = {"dataset_id", "status", "next_after"}
    assert get_type_hints(DatasetReport).keys() - own == get_type_hints(Report).keys()


async def test_a_good_dataset_has_counts_and_no_errors(
    customer: Any, storage: Any, problem: Any, tmp_path: Path
) -> None:
    dataset = await registered(customer, storage, GOOD)
    problem(await customer.send("GET", f"/api/datasets/{dataset['id']}/report"), "dataset_not_ready")
    await read(customer, dataset, GOOD, tmp_path)
    report = await report_of(customer, dataset)
    assert (report["status"], report["policy"], report["rows"], report["duplicate_rows"]) == ("ready", "fail", 3, 1)
    assert (report["errors"], report["next_after"], report["error_count"]) == ([], None, 0)
    assert report["files"] == [
        {"file": "rows.jsonl", "format": "jsonl", "compression": "none", "size": 48, "rows": 3, "skipped_rows": 0}
    ]


async def test_a_failed_one_shows_a_glance_and_its_report_has_pages(
    customer: Any, storage: Any, tmp_path: Path
) -> None:
    content = GOOD + b'{"text": 1}\n' * 1500
    dataset = await registered(customer, storage, content)
    await read(customer, dataset, content, tmp_path)
    shown = (await customer.send("GET", f"/api/datasets/{dataset['id']}")).json()
    assert (shown["status"], shown["skipped_rows"], len(shown["error"]["errors"])) == ("failed", 1500, 20)
    lines: list[int] = []
    after: int | None = 0
    while after is not None:
        page = await report_of(customer, dataset, f"?limit=300&after={after}")
        assert page["error_count"] == 1500
        lines += [error["line"] for error in page["errors"]]
        after = page["next_after"]
    assert lines == list(range(4, 1004))
    assert page["errors"][0] == {
        "file": "rows.jsonl",
        "line": 904,
        "column": None,
        "offset": None,
        "pointer": "/text",
        "rule": "wrong_type",
        "detail": "this is a number, not a string",
        "fix": "Write the value with the type that the message names.",
    }


async def test_with_skip_bad_rows_are_left_out_and_counted(customer: Any, storage: Any, tmp_path: Path) -> None:
    content = GOOD + b"oops\n"
    dataset = await registered(customer, storage, content, policy="skip")
    await read(customer, dataset, content, tmp_path)
    shown = (await customer.send("GET", f"/api/datasets/{dataset['id']}")).json()
    assert (shown["status"], shown["rows"], shown["skipped_rows"]) == ("ready", 3, 1)
    report = await report_of(customer, dataset)
    assert (report["policy"], report["skipped_rows"], report["errors_by_rule"]) == ("skip", 1, {"invalid_json": 1})


async def test_reports_are_private_and_go_with_their_dataset(
    customer: Any, storage: Any, problem: Any, new_customer: Any, tmp_path: Path
) -> None:
    dataset = await registered(customer, storage, GOOD)
    await read(customer, dataset, GOOD, tmp_path)
    path = f"/api/datasets/{dataset['id']}/report"
    problem(await (await new_customer()).send("GET", path), "not_found")
    problem(await (await new_customer("train")).send("GET", path), "forbidden_scope")
    assert (await customer.send("DELETE", f"/api/datasets/{dataset['id']}")).status_code == 204
    problem(await customer.send("GET", path), "not_found")
    kept = "select count(*) from dataset_reports where dataset_id = $1"
    assert await customer.pool.fetchval(kept, UUID(dataset["id"])) == 0


async def test_files_that_were_never_read_have_no_report(customer: Any, storage: Any, problem: Any) -> None:
    dataset = await registered(customer, storage, GOOD)
    attempt, _ = await claimed(customer, dataset)
    async with customer.pool.acquire() as conn:
        await attempts.fail(conn, attempt, "upload_missing", "rows.jsonl is gone")
    found = problem(await customer.send("GET", f"/api/datasets/{dataset['id']}/report"), "not_found")
    assert "never read" in found["detail"]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "after=-1", "after=x"])
async def test_pages_have_bounds(customer: Any, problem: Any, query: str) -> None:
    dataset_id = await customer.dataset()
    problem(await customer.send("GET", f"/api/datasets/{dataset_id}/report?{query}"), "validation_failed")


async def test_an_unknown_policy_is_refused(customer: Any, problem: Any) -> None:
    body = {"upload_ids": [str(UUID(int=1))], "policy": "ignore"}
    found = problem(await customer.send("POST", "/api/datasets", json=body), "validation_failed")
    assert found["errors"][0]["pointer"] == "/policy"


async def test_an_upload_of_unannounced_size_counts_when_it_is_registered(
    customer: Any, storage: Any, problem: Any
) -> None:
    await customer.pool.execute(
        "insert into uploads (account_id, filename, content_type, s3_key, size, expires_at)"
        " values ($1, 'a', 'a/b', $2, $3, now() + interval '1 hour')",
        customer.account_id,
        f"tmp/{customer.account_id}",
        2**40 - len(GOOD) + 1,
    )
    presigned = (await customer.send("POST", "/api/uploads/presign", json={"filename": "rows.jsonl"})).json()
    await storage.put_bytes(presigned["key"], GOOD)
    body = {"upload_ids": [presigned["upload_id"]]}
    found = problem(await customer.send("POST", "/api/datasets", json=body), "quota_exceeded")
    assert found["errors"][0]["pointer"] == "/upload_ids"
