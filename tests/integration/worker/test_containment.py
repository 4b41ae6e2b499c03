"""What goes wrong stays small: trainers that hang are found, explained and killed, and the next job runs."""

import asyncio
import shlex
import sys
from pathlib import Path

import pytest
from fusion_core.db import attempts
from fusion_core.db.pool import Connection
from fusion_core.db.rows import JobRow
from fusion_worker import readiness, stall_watch
from fusion_worker.settings import WorkerSettings

from .conftest import Site, Start, alive, family_of, until


async def test_a_trainer_that_hangs_is_killed_explained_and_resumed(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings
) -> None:
    job_id = await site.train("hang")
    await start_daemon(stall_s=1)
    await site.has_event(job_id, "checkpoint")
    family = family_of(worker_settings.work_dir)
    assert len(alive(family)) == 2
    (interrupted,) = await site.has_event(job_id, "interrupted")
    assert (interrupted["reason"], interrupted["code"], interrupted["resume_step"]) == ("crash", "trainer_stalled", 2)
    message = str(interrupted["message"])
    assert "in phase training after step 2" in message
    assert "stub_trainer.py" in message
    assert "in hang" in message
    await site.be_due(job_id)
    assert (await site.reaches(job_id, "completed")).retries == 1
    assert alive(family) == []


async def test_a_trainer_that_hangs_every_time_fails_its_job_with_the_reason(site: Site, start_daemon: Start) -> None:
    job_id, neighbour = await site.train("stall"), await site.train()
    await start_daemon(stall_s=1)
    for crash in (1, 2):
        await site.has_event(job_id, "interrupted", crash)
        await site.be_due(job_id)
    error = (await site.reaches(job_id, "failed")).error
    assert error is not None
    assert error["code"] == "retry_budget_spent"
    assert [one["code"] for one in error["errors"]] == ["trainer_stalled"]
    assert "after step 2" in error["message"]
    await site.reaches(neighbour, "completed")


async def test_a_trainer_that_does_not_leave_when_it_is_done_costs_a_minute_and_no_retry(
    site: Site, start_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall_watch, "EXIT_S", 0.5)
    job_id = await site.train("linger")
    await start_daemon()
    assert (await site.reaches(job_id, "completed")).retries == 0


async def test_a_broken_gpu_drains_its_worker_and_another_finishes_the_jobs(
    site: Site, start_daemon: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    struck, spared = await site.train("broken"), await site.train()
    await site.pool.execute("update jobs set not_before = now() + interval '1 hour' where id = $1", spared)
    await start_daemon(name="struck")
    (interrupted,) = await site.has_event(struck, "interrupted")
    assert interrupted["code"] == "gpu_fault"
    reason = await site.pool.fetchval("select drain_reason from workers where name = 'struck'")
    assert "uncorrectable ECC" in reason
    await site.be_due(struck)
    await site.be_due(spared)
    await asyncio.sleep(1)  # several looks of the drained worker
    assert {(await site.job(job_id)).state for job_id in (struck, spared)} == {"queued"}
    await start_daemon(name="sound", work_dir=str(tmp_path_factory.mktemp("sound")))
    for job_id in (struck, spared):
        await site.reaches(job_id, "completed")


async def test_a_worker_that_fails_every_job_is_drained_and_its_jobs_are_done_elsewhere(
    site: Site, start_daemon: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    jobs = [await site.train() for _ in range(4)]
    await start_daemon(name="bad", trainer_command=shlex.join([sys.executable, "-c", "raise SystemExit('bad')"]))

    async def drained() -> bool:
        return bool(await site.pool.fetchval("select drain_requested_at is not null from workers"))

    await until(drained, "the worker is drained")
    assert await site.pool.fetchval("select failures from workers") == 3
    reason = await site.pool.fetchval("select drain_reason from workers")
    assert reason.startswith("three jobs in a row crashed here: ")
    await start_daemon(name="good", work_dir=str(tmp_path_factory.mktemp("good")))
    for job_id in jobs:
        await site.be_due(job_id)
        await site.reaches(job_id, "completed")
    assert (await site.job(jobs[3])).retries == 0  # it never met the bad one


async def test_a_poison_job_drains_no_worker_of_a_fleet_and_the_others_go_on(
    site: Site, start_daemon: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for number in range(3):
        await start_daemon(name=str(number), work_dir=str(tmp_path_factory.mktemp("fleet")))
    poison, others = await site.train("crash"), [await site.train() for _ in range(3)]
    for crash in (1, 2):
        await site.has_event(poison, "interrupted", crash)
        await site.be_due(poison)
    await site.reaches(poison, "failed")
    for job_id in others:
        await site.reaches(job_id, "completed")
    rows = await site.pool.fetch("select failures, drain_requested_at from workers")
    assert [tuple(row) for row in rows] == [(0, None)] * 3


async def test_no_job_is_claimed_before_the_devices_memory_is_back(
    site: Site, start_daemon: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, tool = tmp_path / "used", tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat {used}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(readiness, "NVIDIA_SMI", str(tool))
    used.write_text("3\n40960\n")
    job_id = await site.train()
    await start_daemon(device="cuda")
    await asyncio.sleep(1)
    assert (await site.job(job_id)).state == "queued"
    used.write_text("3\n4\n")
    await site.reaches(job_id, "completed")


@pytest.mark.parametrize("said", ["", "[N/A]\n"])
async def test_a_driver_that_does_not_say_what_is_in_use_keeps_no_job_waiting(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(readiness, "NVIDIA_SMI", str(tool))
    assert await readiness.memory_in_use() is None
    monkeypatch.setattr(readiness, "NVIDIA_SMI", str(tmp_path / "absent"))
    assert await readiness.memory_in_use() is None


async def test_a_deaf_trainer_frees_its_device_at_the_end_of_the_grace_although_postgres_is_not_there_to_be_told(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asyncio.Event()
    release = attempts.release

    async def unanswered(connection: Connection, attempt: attempts.Attempt) -> JobRow:
        await answers.wait()
        return await release(connection, attempt)

    monkeypatch.setattr(attempts, "release", unanswered)
    job_id = await site.train("hang")
    daemon = await start_daemon(drain_grace_s=1)
    await site.has_event(job_id, "checkpoint")
    family = family_of(worker_settings.work_dir)
    daemon.drain()

    async def killed() -> bool:
        return not alive(family)

    await until(killed, "the trainer is dead")
    assert (await site.job(job_id)).state == "running"
    answers.set()
    assert await site.has_event(job_id, "interrupted") == [{"reason": "drain", "resume_step": 2}]
