"""How attempts end: completed, failed, crashed, cancelled; and that nothing of them is left on the machine."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from fusion_core.db import jobs
from fusion_core.db.pool import queries
from fusion_core.storage import Storage
from fusion_worker.settings import WorkerSettings

from .conftest import Site, Start, alive, family_of, until


def runs(settings: WorkerSettings) -> list[str]:
    return [path.name for path in (Path(settings.work_dir) / "runs").glob("*")]


async def idle(settings: WorkerSettings) -> None:
    """Wait until the daemon has cleared its last run away."""

    async def cleared() -> bool:
        return runs(settings) == []

    await until(cleared, f"no run folder, but {runs(settings)}")


async def test_a_normal_run_completes_with_a_model_whose_objects_match_its_manifest(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings
) -> None:
    job_id = await site.train()
    await start_daemon()
    job = await site.reaches(job_id, "completed")
    model = await queries.get_model(site.pool, account_id=job.account_id, model_id=job.output_model_id)
    assert (model["name"], model["version"], model["params"]) == ("normal-model", 1, 2)
    assert {entry["rel"] for entry in model["manifest"]["files"]} == {"config.json", "model.safetensors"}
    for entry in model["manifest"]["files"]:
        content = await site.storage.get_bytes(f"{model['s3_prefix']}/{entry['rel']}")
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"])
    kinds = [kind for kind, _ in await site.events(job_id)]
    assert kinds.count("metrics") == 4
    assert kinds.count("grown") == kinds.count("checkpoint") == kinds.count("completed") == 1
    assert job.result is not None
    assert job.result["steps"] == 4
    await idle(worker_settings)


async def test_one_worker_runs_two_jobs_one_after_the_other(site: Site, start_daemon: Start) -> None:
    first, second = await site.train(), await site.train()
    await start_daemon()
    await site.reaches(first, "completed")
    await site.reaches(second, "completed")


async def test_three_crashes_without_progress_fail_the_job(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings
) -> None:
    job_id = await site.train("crash")
    await start_daemon()
    for crash in (1, 2):
        interrupted = await site.has_event(job_id, "interrupted", crash)
        assert [data["reason"] for data in interrupted] == ["crash"] * crash
        await site.be_due(job_id)
    job = await site.reaches(job_id, "failed")
    assert job.error is not None
    assert job.error["code"] == "retry_budget_spent"
    assert "crashed as asked" in job.error["message"]
    assert job.retries == 2
    await idle(worker_settings)


async def test_a_crash_after_a_checkpoint_resumes_from_it(site: Site, start_daemon: Start) -> None:
    job_id = await site.train("relapse")
    await start_daemon()
    interrupted = await site.has_event(job_id, "interrupted")
    assert interrupted[0]["resume_step"] == 2
    await site.be_due(job_id)
    job = await site.reaches(job_id, "completed")
    assert job.retries == 1
    steps = [data["step"] for kind, data in await site.events(job_id) if kind == "metrics"]
    assert steps == [1, 2, 3, 4]


async def test_a_rejected_input_fails_with_its_code_and_is_not_tried_again(site: Site, start_daemon: Start) -> None:
    job_id = await site.train("reject")
    await start_daemon()
    job = await site.reaches(job_id, "failed")
    assert job.error is not None
    assert (job.error["code"], job.error["message"]) == ("dataset_too_short", "not enough text")
    assert job.retries == 0


@pytest.mark.parametrize("mode", ["sleep", "hang"])
async def test_cancel_ends_a_running_job_and_its_processes(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings, mode: str
) -> None:
    job_id = await site.train(mode)
    await start_daemon(drain_grace_s=2)
    await site.has_event(job_id, "checkpoint")
    family = family_of(worker_settings.work_dir)
    assert len(alive(family)) == (2 if mode == "hang" else 1)
    job = await site.job(job_id)
    async with site.pool.acquire() as connection:
        await jobs.cancel_job(connection, job.account_id, job_id)
    await site.reaches(job_id, "cancelled", 10)
    await idle(worker_settings)
    assert alive(family) == []


async def test_a_disk_that_fills_while_staging_is_a_crash_that_leaves_no_folder(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def download_file(_self: Storage, _key: str, path: Path, *_: object) -> None:
        path.with_name("partial").write_bytes(b"some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Storage, "download_file", download_file)
    job_id = await site.train()
    await start_daemon()
    interrupted = await site.has_event(job_id, "interrupted")
    assert (interrupted[0]["reason"], interrupted[0]["code"]) == ("crash", "disk_full")
    await idle(worker_settings)


async def test_a_trainer_that_finds_the_disk_full_says_so(site: Site, start_daemon: Start) -> None:
    job_id = await site.train("full")
    await start_daemon()
    assert (await site.has_event(job_id, "interrupted"))[0]["code"] == "disk_full"


async def test_an_upload_that_changed_after_registration_fails_its_dataset(site: Site, start_daemon: Start) -> None:
    dataset_id, key = await site.ingest(b'{"text": "registered"}\n')
    await site.storage.put_bytes(key, b'{"text": "something else"}\n')
    await start_daemon()

    async def ended() -> bool:
        return bool(await site.pool.fetchval("select status <> 'validating' from datasets where id = $1", dataset_id))

    await until(ended, "the dataset is no longer validating")
    row = await site.pool.fetchrow("select status, error from datasets where id = $1", dataset_id)
    assert row["status"] == "failed"
    error = row["error"] if isinstance(row["error"], dict) else json.loads(row["error"])
    assert error["code"] == "upload_changed"
