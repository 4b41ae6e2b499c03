"""A worker that fails job after job is drained by rule; a job that fails on worker after worker drains none of them."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from fusion_core.db import attempts, checkpoints
from fusion_core.db.attempts import Attempt, Claimer
from fusion_core.db.jobs import submit_job
from fusion_core.db.pool import queries


async def worker(world: Any) -> Claimer:
    claimer = Claimer(worker_id=uuid4(), pool="test")
    await queries.register_worker(
        world.pool, id=claimer.worker_id, name="w", pool="test", spec_version=1, capabilities=[], version="1", gpus=0
    )
    return claimer


async def crash(world: Any, claimer: Claimer, job_id: UUID, code: str = "trainer_crashed") -> Attempt:
    """One attempt of the job on this worker, crashed."""
    job = await world.job(job_id)
    await world.be_due(job_id)
    attempt = Attempt(job_id, job.lease_epoch + 1, uuid4())
    async with world.pool.acquire() as conn:
        claimed = await attempts.claim(conn, claimer, job_id, job.lease_epoch, attempt.attempt_id, 20)
        assert claimed is not None
        await attempts.crash(conn, attempt, code, "boom")
    return attempt


async def failures(world: Any, workers: Sequence[Claimer]) -> list[int]:
    ids = [claimer.worker_id for claimer in workers]
    return [await world.pool.fetchval("select failures from workers where id = $1", one) for one in ids]


async def drained(world: Any, claimer: Claimer) -> str | None:
    reason: str | None = await world.pool.fetchval("select drain_reason from workers where id = $1", claimer.worker_id)
    return reason


async def test_three_jobs_in_a_row_drain_the_worker_and_the_log_says_who_did_it(world: Any) -> None:
    bad = await worker(world)
    jobs = [(await world.train()).id for _ in range(3)]
    for job_id in jobs[:2]:
        await crash(world, bad, job_id)
    assert await drained(world, bad) is None
    await crash(world, bad, jobs[2])
    reason = await drained(world, bad)
    assert reason is not None
    assert reason.startswith("three jobs in a row crashed here: ")
    assert all(f"{job_id} (trainer_crashed)" in reason for job_id in jobs)
    (entry,) = await world.pool.fetch("select * from audit_log")
    assert (entry["actor"], entry["action"], entry["target"]) == (
        "rule:failing-worker",
        "drain_worker",
        str(bad.worker_id),
    )
    assert (entry["before"]["draining"], entry["after"]["draining"]) == (False, True)


async def test_a_job_that_crashes_everywhere_drains_nobody_and_is_taken_back_when_it_fails(world: Any) -> None:
    fleet = [await worker(world) for _ in range(3)]
    for _ in range(4):  # job after job, each on every worker
        poison = (await world.train()).id
        for number, claimer in enumerate(fleet):
            assert await failures(world, fleet) == [int(number > 0), int(number > 1), 0]
            await crash(world, claimer, poison)
        assert (await world.job(poison)).state == "failed"
        assert await failures(world, fleet) == [0, 0, 0]
    assert [await drained(world, claimer) for claimer in fleet] == [None] * 3


async def test_one_job_counts_once_and_so_do_jobs_that_read_one_dataset(world: Any) -> None:
    claimer = await worker(world)
    new = await world.new_train()
    for number in range(4):
        again = msgspec.structs.replace(new, idempotency_key=f"key-{number}")
        async with world.pool.acquire() as conn:
            job, _ = await submit_job(conn, again)
        await crash(world, claimer, job.id)
        await crash(world, claimer, job.id)
    assert await failures(world, [claimer]) == [1]
    assert await drained(world, claimer) is None


@pytest.mark.parametrize("progress", ["checkpoint", "completion"])
async def test_whatever_the_worker_gets_done_clears_it(world: Any, progress: str) -> None:
    claimer = await worker(world)
    world.claimer = claimer
    for _ in range(2):
        await crash(world, claimer, (await world.train()).id)
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        if progress == "checkpoint":
            await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 1))
        else:
            await attempts.complete_training(conn, attempt, world.new_model(attempt), {})
    assert await failures(world, [claimer]) == [0]
    for _ in range(2):
        await crash(world, claimer, (await world.train()).id)
    assert await failures(world, [claimer]) == [2]
    assert await drained(world, claimer) is None


async def test_a_gpu_fault_drains_at_once_and_what_s3_does_to_everybody_never(world: Any) -> None:
    struck, unlucky = await worker(world), await worker(world)
    await crash(world, struck, (await world.train()).id, "gpu_fault")
    assert "GPU fault in job" in str(await drained(world, struck))
    for code in ("inputs_unavailable", "upload_failed") * 3:
        await crash(world, unlucky, (await world.train()).id, code)
    assert (await failures(world, [unlucky]), await drained(world, unlucky)) == ([0], None)


async def test_the_last_crash_of_a_job_still_drains_a_gpu_that_reported_a_fault(world: Any) -> None:
    claimer = await worker(world)
    job_id = (await world.train()).id
    for code in ("trainer_crashed", "trainer_crashed", "gpu_fault"):
        await crash(world, claimer, job_id, code)
    assert (await world.job(job_id)).state == "failed"
    assert await drained(world, claimer) is not None
    assert await failures(world, [claimer]) == [0]


async def test_a_job_that_reports_broken_gpus_everywhere_drains_one_worker(world: Any) -> None:
    fleet = [await worker(world) for _ in range(3)]
    job_id = (await world.train()).id
    for claimer in fleet:
        await crash(world, claimer, job_id, "gpu_fault")
    assert [await drained(world, claimer) is not None for claimer in fleet] == [True, False, False]
