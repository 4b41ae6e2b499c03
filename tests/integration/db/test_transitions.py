"""Every transition of the design, through the real SQL."""

from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from fusion_core.db import attempts, checkpoints, jobs, sweep
from fusion_core.db.attempts import LeaseLostError, WorkerEvent
from fusion_core.db.endings import frozen_estimate
from fusion_core.db.pool import queries
from fusion_core.db.rows import JobRow
from fusion_core.states import CRASH_BUDGET, LOSS_LIMIT


@pytest.mark.parametrize("knows_its_job", [True, False])
async def test_submit_claim_complete_is_one_model_one_bill_and_unbroken_events(world: Any, knows_its_job: bool) -> None:
    job = await world.train()
    attempt = await world.claim(job)
    async with world.pool.acquire() as conn:
        claimed = JobRow.of(await queries.get_claim(conn, job_id=job.id, attempt_id=attempt.attempt_id))
        await attempts.append_events(conn, attempt, [WorkerEvent(1, "phase", {"phase": "growing"})], "growing")
        await attempts.append_events(conn, attempt, [WorkerEvent(2, "grown", {})])
        await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 10))
        known, model = claimed if knows_its_job else None, world.new_model(attempt)
        done = await attempts.complete_training(conn, attempt, model, {"tokens": 1}, known)
        again = await attempts.complete_training(conn, attempt, model, {"tokens": 1}, known)
    assert (done.state, done.retries, done.last_checkpoint_step) == ("completed", 0, 10)
    assert again.output_model_id == done.output_model_id
    assert await world.ledger(job.id) == [frozen_estimate(done).total_microusd]
    assert await world.event_types(job.id) == ["queued", "claimed", "phase", "grown", "checkpoint", "completed"]
    topics = await world.pool.fetch("select topic from outbox where job_id = $1 order by seq", job.id)
    assert [row["topic"] for row in topics] == ["job.started", "job.checkpoint", "job.completed"]


async def test_completed_ingest_makes_its_dataset_ready_with_its_shards(world: Any) -> None:
    job = await world.ingest()
    attempt = await world.claim(job)
    async with world.pool.acquire() as conn:
        done = await attempts.complete_ingest(conn, attempt, [world.new_shard(attempt)], rows=3, heldout_rows=1)
        assert (await attempts.complete_ingest(conn, attempt, [], rows=0, heldout_rows=0)).state == "completed"
        dataset = await queries.get_dataset(conn, account_id=job.account_id, dataset_id=job.dataset_id)
        assert await jobs.get_job(conn, job.account_id, job.id) is None, "ingest is internal"
    assert done.state == "completed"
    assert (dataset["status"], dataset["shard_count"], dataset["rows"]) == ("ready", 1, 3)


async def test_failed_ingest_fails_its_dataset_with_the_line(world: Any) -> None:
    job = await world.ingest()
    attempt = await world.claim(job)
    errors = [{"file": "x.jsonl", "line": 7, "detail": "not JSON"}]
    async with world.pool.acquire() as conn:
        await attempts.fail(conn, attempt, "invalid_row", "x.jsonl line 7 is not JSON", errors)
        dataset = await queries.get_dataset(conn, account_id=job.account_id, dataset_id=job.dataset_id)
    assert dataset["status"] == "failed"
    assert dataset["error"]["errors"] == errors


async def test_failed_job_pays_nothing(world: Any) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        failed = await attempts.fail(conn, attempt, "nonfinite_loss", "The loss is not a number.")
    assert failed.error is not None
    assert failed.error["code"] == "nonfinite_loss"
    assert await world.ledger(attempt.job_id) == [0]


async def test_lost_lease_requeues_and_counts_a_retry(world: Any) -> None:
    attempt = await world.running()
    await world.expire(attempt.job_id)
    async with world.pool.acquire() as conn:
        (job,) = await sweep.reclaim_expired(conn)
        assert await sweep.reclaim_expired(conn) == []
    assert (job.state, job.retries, job.status) == ("queued", 1, "preempted")
    second = await world.claim(job)
    assert second.epoch == attempt.epoch + 1


async def test_first_lost_lease_waits_no_further(world: Any) -> None:
    attempt = await world.running()
    await world.expire(attempt.job_id)
    async with world.pool.acquire() as conn:
        await sweep.reclaim_expired(conn)
    assert await world.pool.fetchval("select not_before <= now() from jobs where id = $1", attempt.job_id)


async def test_losing_workers_without_progress_quarantines_and_progress_resets(world: Any) -> None:
    job = await world.train()
    for loss in range(1, LOSS_LIMIT + 2):
        await world.be_due(job.id)
        attempt = await world.claim(await world.job(job.id))
        async with world.pool.acquire() as conn:
            if loss == 1:
                await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 1))
            if loss == 2:
                await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 2))
            await world.expire(job.id)
            (requeued,) = await sweep.reclaim_expired(conn)
    assert requeued.losses == LOSS_LIMIT
    assert requeued.quarantined_at is not None
    await world.be_due(job.id)
    assert await world.pool.fetchval("select count(*) from claimable where id = $1", job.id) == 0
    assert "quarantined" in await world.event_types(job.id)


async def test_crashes_without_progress_spend_the_budget(world: Any) -> None:
    job = await world.train()
    for crash in range(1, CRASH_BUDGET + 1):
        await world.be_due(job.id)
        attempt = await world.claim(await world.job(job.id))
        async with world.pool.acquire() as conn:
            after = await attempts.crash(conn, attempt, "trainer_crashed", "exit 9")
        assert after.state == ("failed" if crash == CRASH_BUDGET else "queued")
    assert after.error["code"] == "retry_budget_spent"
    assert await world.ledger(job.id) == [0]


async def test_an_outage_of_s3_fails_no_job_however_long_it_is(world: Any) -> None:
    job = await world.train()
    for _ in range(CRASH_BUDGET + 2):
        await world.be_due(job.id)
        attempt = await world.claim(await world.job(job.id))
        async with world.pool.acquire() as conn:
            after = await attempts.crash(conn, attempt, attempts.STORAGE_UNAVAILABLE, "503 SlowDown")
        assert (after.state, after.crashes) == ("queued", 0)
    assert after.retries == CRASH_BUDGET + 2


async def test_a_checkpoint_resets_the_crash_budget(world: Any) -> None:
    job = await world.train()
    for crash in range(1, CRASH_BUDGET + 2):
        await world.be_due(job.id)
        attempt = await world.claim(await world.job(job.id))
        async with world.pool.acquire() as conn:
            await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, crash))
            after = await attempts.crash(conn, attempt, "trainer_crashed", "exit 9")
    assert (after.state, after.retries) == ("queued", CRASH_BUDGET + 1)


async def test_drain_requeues_at_once_and_costs_no_retry(world: Any) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        job = await attempts.release(conn, attempt)
    assert (job.state, job.retries, job.last_interruption) == ("queued", 0, "drain")
    await world.claim(job)


@pytest.mark.parametrize("interrupt", ["obey", "release", "crash", "reclaim"])
@pytest.mark.parametrize(("wish", "state"), [("cancel", "cancelled"), ("stop", "stopped"), ("both", "cancelled")])
async def test_every_interruption_honours_cancel_first_then_stop(
    world: Any, interrupt: str, wish: str, state: str
) -> None:
    attempt = await world.running()
    account_id = (await world.job(attempt.job_id)).account_id
    async with world.pool.acquire() as conn:
        if wish in ("stop", "both"):
            await jobs.stop_job(conn, account_id, attempt.job_id)
        if wish in ("cancel", "both"):
            await jobs.cancel_job(conn, account_id, attempt.job_id)
        renewal = await attempts.renew(conn, attempt, 20)
        assert (renewal.cancel, renewal.stop) == (wish != "stop", wish != "cancel")
        if interrupt == "reclaim":
            await world.expire(attempt.job_id)
            await sweep.reclaim_expired(conn)
        elif interrupt == "crash":
            await attempts.crash(conn, attempt, "trainer_crashed", "exit 9")
        elif interrupt == "obey":
            await attempts.obey(conn, attempt)
        else:
            await attempts.release(conn, attempt)
    job = await world.job(attempt.job_id)
    assert (job.state, job.retries) == (state, 0)
    assert len(await world.ledger(job.id)) == (1 if state == "cancelled" else 0)


async def test_queued_and_stopped_jobs_cancel_at_once_and_twice_is_once(world: Any) -> None:
    job = await world.train()
    async with world.pool.acquire() as conn:
        stopped = await jobs.stop_job(conn, job.account_id, job.id)
        assert stopped is not None
        assert stopped.state == "stopped"
        for _ in range(2):
            cancelled = await jobs.cancel_job(conn, job.account_id, job.id)
            assert cancelled is not None
            assert cancelled.state == "cancelled"
    assert await world.ledger(job.id) == [0]
    assert (await world.event_types(job.id)).count("cancelled") == 1


async def test_cancel_after_growth_pays_growth_and_committed_steps_only(world: Any) -> None:
    attempt = await world.running()
    job = await world.job(attempt.job_id)
    async with world.pool.acquire() as conn:
        await attempts.append_events(conn, attempt, [WorkerEvent(1, "grown", {})])
        await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 10))
        await jobs.cancel_job(conn, job.account_id, job.id)
        await attempts.obey(conn, attempt)
    (paid,) = await world.ledger(job.id)
    assert 0 < paid < frozen_estimate(job).total_microusd
    tokens = await world.pool.fetchval("select tokens from ledger where job_id = $1", job.id)
    assert tokens == 10 * 256


async def test_stop_and_resume_go_on_from_the_checkpoint(world: Any) -> None:
    attempt = await world.running()
    account_id = (await world.job(attempt.job_id)).account_id
    async with world.pool.acquire() as conn:
        await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 4))
        await jobs.stop_job(conn, account_id, attempt.job_id)
        await attempts.obey(conn, attempt)
        resumed = await jobs.resume_job(conn, account_id, attempt.job_id)
        assert resumed is not None
        assert (resumed.state, resumed.stop_requested_at, resumed.status) == ("queued", None, "queued")
        readable = await checkpoints.readable_checkpoints(conn, attempt.job_id)
    assert [checkpoint.step for checkpoint in readable] == [4]
    await world.claim(resumed)


async def test_stopped_jobs_expire_to_cancelled(world: Any) -> None:
    job = await world.train()
    async with world.pool.acquire() as conn:
        await jobs.stop_job(conn, job.account_id, job.id)
        assert await sweep.expire_stopped(conn) == 0
        await conn.execute("update jobs set stopped_at = now() - interval '31 days' where id = $1", job.id)
        assert await sweep.expire_stopped(conn) == 1
    assert (await world.job(job.id)).state == "cancelled"


async def test_lost_checkpoint_falls_back_and_says_so(world: Any) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        for step in (3, 6):
            await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, step))
            await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, step))
        newest, older = await checkpoints.readable_checkpoints(conn, attempt.job_id)
        await checkpoints.mark_checkpoint_lost(conn, attempt, newest, "hash differs")
        assert (await world.job(attempt.job_id)).last_checkpoint_step == 3
        await checkpoints.mark_checkpoint_lost(conn, attempt, older, "hash differs")
    assert (await world.job(attempt.job_id)).last_checkpoint_step == 0
    assert (await world.event_types(attempt.job_id)).count("checkpoint_lost") == 2


async def test_after_a_gap_in_the_sweeps_nothing_is_reclaimed_for_one_lease(world: Any) -> None:
    async with world.pool.acquire() as conn:
        assert not await sweep.begin_sweep(conn, ttl_s=20, gap_s=6), "the first sweep ever is after a gap"
        await conn.execute("update sweeps set reclaim_after = now()")
        assert await sweep.begin_sweep(conn, ttl_s=20, gap_s=6)
        await conn.execute("update sweeps set last_sweep_at = now() - interval '7 s'")
        assert not await sweep.begin_sweep(conn, ttl_s=20, gap_s=6)
        assert not await sweep.begin_sweep(conn, ttl_s=20, gap_s=6)


async def test_rings_are_counted_and_not_repeated_too_soon(world: Any) -> None:
    job = await world.train()
    async with world.pool.acquire() as conn:
        (due,) = [ring for ring in await sweep.due_rings(conn, depth=4, again_s=5) if ring.job_id == job.id]
        assert [ring.ring_count for ring in await sweep.ring(conn, [due])] == [1]
        assert await sweep.ring(conn, [due]) == []
        assert await sweep.due_rings(conn, depth=4, again_s=5) == []


async def test_terminal_rows_cannot_be_changed_even_by_hand(world: Any) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        await attempts.fail(conn, attempt, "nonfinite_loss", "no")
        with pytest.raises(asyncpg.RestrictViolationError):
            await conn.execute("update jobs set state = 'queued' where id = $1", attempt.job_id)


async def test_claim_compares_pool_version_capabilities_pauses_and_account_limit(world: Any) -> None:
    job = await world.train()
    async with world.pool.acquire() as conn:
        other = attempts.Claimer(worker_id=uuid4(), pool="other")
        assert await attempts.claim_next(conn, other, uuid4(), 20) is None
        old = attempts.Claimer(worker_id=uuid4(), pool="test", spec_version=0)
        assert await attempts.claim_next(conn, old, uuid4(), 20) is None
        await conn.execute("update jobs set requirements = '{fp8}'")
        assert await attempts.claim_next(conn, world.claimer, uuid4(), 20) is None
        await conn.execute("update jobs set requirements = '{}'")
        await conn.execute("insert into dispatch_pauses (pool, reason) values ('test', 'maintenance')")
        assert await attempts.claim_next(conn, world.claimer, uuid4(), 20) is None
        await conn.execute("delete from dispatch_pauses")
        await conn.execute("update accounts set max_running_jobs = 0")
        assert await attempts.claim_next(conn, world.claimer, uuid4(), 20) is None
        await conn.execute("update accounts set max_running_jobs = 1")
        claimed = await attempts.claim_next(conn, world.claimer, uuid4(), 20)
    assert claimed is not None
    assert claimed.id == job.id


async def test_an_idle_account_goes_before_a_busy_one(world: Any) -> None:
    busy = await world.account()
    async with world.pool.acquire() as conn:
        for _ in range(3):
            await jobs.submit_job(conn, await world.new_train(busy))
        first = await attempts.claim_next(conn, world.claimer, uuid4(), 20)
        late = await world.train()
        second = await attempts.claim_next(conn, world.claimer, uuid4(), 20)
    assert first is not None
    assert second is not None
    assert (first.account_id, second.id) == (busy, late.id)


async def test_lease_lost_is_not_swallowed_where_another_attempt_completed(world: Any) -> None:
    first = await world.running()
    await world.expire(first.job_id)
    async with world.pool.acquire() as conn:
        (job,) = await sweep.reclaim_expired(conn)
        second = await world.claim(job)
        await attempts.complete_training(conn, second, world.new_model(second), {})
        with pytest.raises(LeaseLostError):
            await attempts.complete_training(conn, first, world.new_model(first), {})


async def test_a_step_that_is_trained_again_in_one_batch_counts_once(world: Any) -> None:
    """A rollback that the worker reports late, because Postgres was away: both points are in one batch."""
    attempt = await world.running()
    points = [WorkerEvent(number, "metrics", {"step": 7, "loss": float(number)}) for number in (1, 2)]
    async with world.pool.acquire() as conn:
        assert await attempts.append_events(conn, attempt, points) == 2
        assert await jobs.list_metrics(conn, attempt.job_id, since_step=0, limit=9) == [{"step": 7, "loss": 2.0}]
