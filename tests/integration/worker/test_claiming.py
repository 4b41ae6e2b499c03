"""Two ways to a job: a ring at the right epoch, or a look into Postgres. Redis is only a hint."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from arq import ArqRedis, create_pool
from arq.connections import RedisSettings
from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt, Claimer
from fusion_core.db.migrate import migrate
from fusion_core.db.pool import Connection
from fusion_core.db.rows import JobRow
from fusion_core.db.worker_statements import SCHEMA
from fusion_local.stack import Stack
from fusion_worker.doorbell import queue_name
from fusion_worker.readiness import Readiness
from fusion_worker.settings import WorkerSettings
from fusion_worker.slot import Slot
from msgspec import json

from .conftest import POOL, Site, Start, until

NEVER_S = 600.0


@pytest.fixture
async def bell(redis_url: str) -> AsyncIterator[ArqRedis]:
    pool = await create_pool(RedisSettings.from_dsn(redis_url), job_serializer=json.encode)
    await pool.flushdb()
    yield pool
    await pool.aclose(close_connection_pool=True)


async def ring(bell: ArqRedis, job_id: UUID, epoch: int, number: int = 1) -> None:
    """As the orchestrator rings, and wait until a worker has heard it."""
    arq_id = f"{job_id}:{epoch}:{number}"
    enqueued = await bell.enqueue_job(
        "claim_job", str(job_id), epoch, _job_id=arq_id, _queue_name=queue_name(POOL), _expires=60
    )
    assert enqueued is not None

    async def heard() -> bool:
        return not await bell.exists(f"arq:job:{arq_id}")

    await until(heard, "the ring was heard")


async def claims(site: Site, job_id: UUID) -> int:
    return [kind for kind, _ in await site.events(job_id)].count("claimed")


async def silent(start_daemon: Start, site: Site) -> None:
    """A daemon whose own look is over, and which will not look again."""
    await start_daemon(idle_poll_s=NEVER_S)

    async def registered() -> bool:
        return bool(await site.pool.fetchval("select count(*) > 0 from workers where state = 'idle'"))

    await until(registered, "the worker is registered")
    await asyncio.sleep(0.3)


async def test_a_ring_claims_at_once_and_a_second_ring_for_the_same_claims_nothing(
    site: Site, start_daemon: Start, bell: ArqRedis
) -> None:
    await silent(start_daemon, site)
    job_id = await site.train()
    await ring(bell, job_id, 0)
    await site.reaches(job_id, "completed")
    await ring(bell, job_id, 0, number=2)
    assert await claims(site, job_id) == 1


async def test_a_ring_of_an_earlier_epoch_is_dropped_and_the_right_one_is_not(
    site: Site, start_daemon: Start, bell: ArqRedis
) -> None:
    await silent(start_daemon, site)
    job_id = await site.train()
    async with site.pool.acquire() as connection:
        attempt = Attempt(job_id, 1, uuid4())
        claimer = Claimer(worker_id=uuid4(), pool=POOL)
        assert await attempts.claim(connection, claimer, job_id, 0, attempt.attempt_id, 60) is not None
        await attempts.release(connection, attempt)
    await ring(bell, job_id, 0)
    job = await site.job(job_id)
    assert (job.state, job.lease_epoch) == ("queued", 1)
    await ring(bell, job_id, 1, number=2)
    await site.reaches(job_id, "completed")


async def test_two_workers_that_hear_of_one_job_claim_it_once(
    site: Site, start_daemon: Start, tmp_path_factory: pytest.TempPathFactory, bell: ArqRedis
) -> None:
    for number in range(2):
        await start_daemon(work_dir=str(tmp_path_factory.mktemp(f"work{number}")))
    found = [await site.train() for _ in range(3)]
    for job_id in found:
        await ring(bell, job_id, 0)
    for job_id in found:
        await site.reaches(job_id, "completed")
        assert await claims(site, job_id) == 1


async def test_without_redis_jobs_are_claimed_by_looking(site: Site, start_daemon: Start, stack: Stack) -> None:
    stack.processes.kill("valkey")
    try:
        job_id = await site.train()
        await start_daemon()
        await site.reaches(job_id, "completed")
    finally:
        stack.start_valkey()


async def test_a_full_disk_claims_nothing(site: Site, start_daemon: Start) -> None:
    job_id = await site.train()
    await start_daemon(min_free_bytes=2**62)
    await asyncio.sleep(1)
    assert (await site.job(job_id)).state == "queued"


@pytest.mark.parametrize("way", ["cut", "cancelled"])
async def test_a_claim_whose_answer_was_lost_is_found_again_and_not_left_to_its_lease(
    site: Site, worker_settings: WorkerSettings, way: str
) -> None:
    Path(worker_settings.work_dir).mkdir()
    claimer = Claimer(worker_id=uuid4(), pool=POOL)
    slot = Slot(site.pool, claimer, worker_settings, Readiness(worker_settings, site.storage))
    first, _ = await site.train(), await site.train()

    async def claim_and_lose_the_answer(connection: Connection, attempt_id: UUID) -> JobRow | None:
        await attempts.claim_next(connection, claimer, attempt_id, 20)
        raise ConnectionResetError if way == "cut" else asyncio.CancelledError

    with contextlib.suppress(asyncio.CancelledError):
        assert not await slot._claim(claim_and_lose_the_answer)
    assert not slot.busy
    assert await slot.look()
    claimed = await slot.next(1)
    assert claimed is not None
    job, attempt = claimed
    assert (job.id, attempt.epoch, job.attempt_id) == (first, 1, attempt.attempt_id)
    assert await claims(site, first) == 1


async def test_a_run_folder_that_cannot_be_made_is_a_crash_of_the_job_and_not_of_the_daemon(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings
) -> None:
    await start_daemon()

    async def ready() -> bool:
        return bool(await site.pool.fetchval("select count(*) > 0 from workers where state = 'idle'"))

    await until(ready, "the worker is registered")
    in_the_way = Path(worker_settings.work_dir) / "runs"
    in_the_way.write_text("no folder")
    job_id = await site.train()
    (interrupted,) = await site.has_event(job_id, "interrupted")
    assert interrupted["reason"] == "crash"
    in_the_way.unlink()
    await site.be_due(job_id)
    await site.reaches(job_id, "completed")


async def test_a_worker_before_its_migration_waits_for_it_and_says_so(
    site: Site, stack: Stack, database_name: str, start_daemon: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    await site.pool.execute(f"drop schema {SCHEMA} cascade")
    job_id = await site.train()
    await start_daemon()
    told = ""

    async def warned() -> bool:
        nonlocal told
        told += capsys.readouterr().out
        return "fusion-admin migrate" in told

    await until(warned, "the worker says what it waits for")
    await migrate(stack.database_url(database_name))
    assert (await site.reaches(job_id, "completed")).state == "completed"
