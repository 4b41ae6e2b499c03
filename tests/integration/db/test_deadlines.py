"""Every job ends: past its deadline it fails as overdue, in whatever state; and silent workers are no capacity."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from fusion_core.db import attempts, jobs, sweep
from fusion_core.db.attempts import LeaseLostError
from fusion_core.db.pool import queries
from fusion_core.states import DEADLINE_S, INTERNAL_DEADLINE_S, LOSS_LIMIT


async def pass_deadline(world: Any, job_id: UUID) -> None:
    deadline = await world.pool.fetchval("select deadline_at from jobs where id = $1", job_id)
    await world.clock.reach(deadline + timedelta(seconds=1))


async def ended(world: Any) -> list[UUID]:
    async with world.pool.acquire() as conn:
        return [job.id for job in await sweep.end_overdue(conn)]


async def test_a_job_and_an_internal_one_have_their_deadlines_and_a_creator_may_set_another(world: Any) -> None:
    async with world.pool.acquire() as conn:
        hurried, _ = await jobs.submit_job(conn, msgspec.structs.replace(await world.new_train(), deadline_s=60.0))
    expected = {(await world.train()).id: DEADLINE_S, (await world.ingest()).id: INTERNAL_DEADLINE_S, hurried.id: 60.0}
    rows = await world.pool.fetch("select id, extract(epoch from deadline_at - created_at)::float8 as s from jobs")
    assert {row["id"]: row["s"] for row in rows} == expected


@pytest.mark.parametrize("state", ["queued", "running", "quarantined"])
async def test_past_its_deadline_a_job_fails_pays_nothing_and_says_why(world: Any, state: str) -> None:
    job = await world.train()
    if state == "running":
        attempt = await world.claim(job, ttl_s=10 * DEADLINE_S)
    if state == "quarantined":
        await world.pool.execute(
            "update jobs set quarantined_at = now(), losses = $2 where id = $1", job.id, LOSS_LIMIT
        )
    assert await ended(world) == []
    await pass_deadline(world, job.id)
    assert await ended(world) == [job.id]
    after = await world.job(job.id)
    assert (after.state, after.error["code"]) == ("failed", "deadline_exceeded")
    assert "within 336.0 hours" in after.error["message"]
    assert await world.ledger(job.id) == [0]
    assert (await world.event_types(job.id))[-1] == "failed"
    topics = await world.pool.fetch("select topic from outbox where job_id = $1 order by seq", job.id)
    assert topics[-1]["topic"] == "job.failed"
    assert await ended(world) == []
    if state == "running":
        async with world.pool.acquire() as conn:
            with pytest.raises(LeaseLostError):
                await attempts.renew(conn, attempt, 20)


async def test_an_overdue_ingest_fails_its_dataset(world: Any) -> None:
    job = await world.ingest()
    await pass_deadline(world, job.id)
    await ended(world)
    row = await world.pool.fetchrow("select status, error from datasets where id = $1", job.dataset_id)
    assert (row["status"], row["error"]["code"]) == ("failed", "deadline_exceeded")


@pytest.mark.parametrize(("wish", "state"), [(jobs.cancel_job, "cancelled"), (jobs.stop_job, "stopped")])
async def test_what_the_customer_asked_for_comes_first(world: Any, wish: Any, state: str) -> None:
    job = await world.train()
    await world.claim(job)
    async with world.pool.acquire() as conn:
        await wish(conn, job.account_id, job.id)
    await pass_deadline(world, job.id)
    await ended(world)
    assert (await world.job(job.id)).state == state


async def test_stopped_time_does_not_count_and_a_requeue_changes_nothing(world: Any) -> None:
    job = await world.train()
    before = await world.pool.fetchval("select deadline_at from jobs where id = $1", job.id)
    attempt = await world.claim(job)
    async with world.pool.acquire() as conn:
        await attempts.crash(conn, attempt, "trainer_crashed", "boom")
        assert await world.pool.fetchval("select deadline_at from jobs where id = $1", job.id) == before
        await jobs.stop_job(conn, job.account_id, job.id)
        stopped_at = await world.pool.fetchval("select stopped_at from jobs where id = $1", job.id)
        await world.clock.reach(stopped_at + timedelta(days=20))
        assert await ended(world) == []
        await jobs.resume_job(conn, job.account_id, job.id)
    after = await world.pool.fetchval("select deadline_at from jobs where id = $1", job.id)
    assert timedelta(days=20) <= after - before < timedelta(days=20, minutes=1)
    assert await ended(world) == []


async def test_a_job_given_more_time_between_the_look_and_the_lock_goes_on(world: Any) -> None:
    job = await world.train()
    await pass_deadline(world, job.id)
    await world.pool.execute("update jobs set deadline_at = deadline_at + interval '1 hour' where id = $1", job.id)
    async with world.pool.acquire() as conn:
        assert await queries.lock_overdue(conn, job_id=job.id, epoch=job.lease_epoch) is None
    assert await ended(world) == []


async def test_silent_workers_are_gone_until_they_report_unless_they_hold_a_lease(world: Any) -> None:
    async def register(worker_id: UUID) -> None:
        await queries.register_worker(
            world.pool, id=worker_id, name="w", pool="test", spec_version=1, capabilities=[], version="1", gpus=0
        )

    async def swept() -> list[UUID]:
        async with world.pool.acquire() as conn:
            return [row["id"] for row in await sweep.mark_gone_workers(conn, silent_s=60)]

    worker_id = world.claimer.worker_id
    await register(worker_id)
    attempt = await world.running(ttl_s=600)
    seen_at = await world.pool.fetchval("select seen_at from workers")
    await world.clock.reach(seen_at + timedelta(seconds=61))
    assert await swept() == []
    async with world.pool.acquire() as conn:
        await attempts.release(conn, attempt)
    assert await swept() == [worker_id]
    assert await swept() == []
    assert await queries.worker_seen(world.pool, id=worker_id, state="idle", job_id=None) is not None
    assert await world.pool.fetchval("select state from workers") == "idle"
    await world.clock.reach(seen_at + timedelta(days=8))
    assert await swept() == [worker_id]
    assert await world.pool.fetchval("select count(*) from workers") == 0
    assert await queries.worker_seen(world.pool, id=worker_id, state="idle", job_id=None) is None
    await register(worker_id)
    assert await world.pool.fetchval("select state from workers") == "idle"
