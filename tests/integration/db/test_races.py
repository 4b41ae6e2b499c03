"""Races, each with real concurrent connections."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from fusion_core.db import attempts, checkpoints, jobs, sweep
from fusion_core.db.attempts import Attempt, CancelPendingError, LeaseLostError, WorkerEvent


async def test_n_claimers_one_winner(world: Any) -> None:
    job = await world.train()

    async def claim() -> bool:
        async with world.pool.acquire() as conn:
            return await attempts.claim(conn, world.claimer, job.id, 0, uuid4(), 20) is not None

    assert sum(await asyncio.gather(*(claim() for _ in range(16)))) == 1
    assert (await world.event_types(job.id)).count("claimed") == 1


async def test_a_claim_whose_answer_was_lost_can_be_repeated(world: Any) -> None:
    job = await world.train()
    attempt_id = uuid4()
    async with world.pool.acquire() as conn:
        first = await attempts.claim(conn, world.claimer, job.id, 0, attempt_id, 20)
        again = await attempts.claim(conn, world.claimer, job.id, 0, attempt_id, 20)
    assert first is not None
    assert again is not None
    assert again.lease_epoch == first.lease_epoch == 1


async def test_fifty_submissions_of_one_key_make_one_job(world: Any) -> None:
    new = await world.new_train(key="once")

    async def submit() -> tuple[Any, bool]:
        async with world.pool.acquire() as conn:
            job, created = await jobs.submit_job(conn, new)
            return job.id, created

    answers = await asyncio.gather(*(submit() for _ in range(50)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1


Write = Callable[[Any, Any, Attempt], Awaitable[object]]
WRITES: dict[str, Write] = {
    "renew": lambda world, conn, attempt: attempts.renew(conn, attempt, 20),
    "append_events": lambda world, conn, attempt: attempts.append_events(conn, attempt, [WorkerEvent(1, "phase", {})]),
    "commit_checkpoint": lambda world, conn, attempt: checkpoints.commit_checkpoint(
        conn, attempt, world.new_checkpoint(attempt, 5)
    ),
    "mark_checkpoint_lost": lambda world, conn, attempt: checkpoints.mark_checkpoint_lost(
        conn, attempt, checkpoints.Checkpoint(1, 1, "x", world.new_checkpoint(attempt, 1).manifest, 1), "gone"
    ),
    "complete_training": lambda world, conn, attempt: attempts.complete_training(
        conn, attempt, world.new_model(attempt), {}
    ),
    "complete_ingest": lambda world, conn, attempt: attempts.complete_ingest(
        conn, attempt, [world.new_shard(attempt)], 3, 1
    ),
    "fail": lambda world, conn, attempt: attempts.fail(conn, attempt, "nonfinite_loss", "no"),
    "crash": lambda world, conn, attempt: attempts.crash(conn, attempt, "trainer_crashed", "no"),
    "release": lambda world, conn, attempt: attempts.release(conn, attempt),
    "obey": lambda world, conn, attempt: attempts.obey(conn, attempt),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("staleness", ["epoch", "attempt", "not running"])
async def test_a_stale_epoch_or_attempt_is_refused_on_every_write(world: Any, write: str, staleness: str) -> None:
    held = await (world.claim(await world.ingest()) if write == "complete_ingest" else world.running())
    stale = held
    if staleness == "epoch":
        stale = Attempt(held.job_id, held.epoch - 1, held.attempt_id)
    elif staleness == "attempt":
        stale = Attempt(held.job_id, held.epoch, uuid4())
    else:
        async with world.pool.acquire() as conn:
            await attempts.release(conn, held)
    before = (await world.job(held.job_id), await world.event_types(held.job_id))
    async with world.pool.acquire() as conn:
        with pytest.raises(LeaseLostError):
            await WRITES[write](world, conn, stale)
    assert (await world.job(held.job_id), await world.event_types(held.job_id)) == before
    assert await world.ledger(held.job_id) == []


async def test_cancel_against_complete_leaves_exactly_one_outcome(world: Any) -> None:
    outcomes = set()
    for _ in range(12):
        attempt = await world.running()
        account_id = (await world.job(attempt.job_id)).account_id

        async def complete(attempt: Attempt = attempt) -> None:
            async with world.pool.acquire() as conn:
                try:
                    await attempts.complete_training(conn, attempt, world.new_model(attempt), {})
                except CancelPendingError:
                    await attempts.obey(conn, attempt)

        async def cancel(attempt: Attempt = attempt, account_id: Any = account_id) -> None:
            async with world.pool.acquire() as conn:
                assert await jobs.cancel_job(conn, account_id, attempt.job_id) is not None

        await asyncio.gather(complete(), cancel())
        job = await world.job(attempt.job_id)
        models = await world.pool.fetchval("select count(*) from models where job_id = $1", job.id)
        assert models == (1 if job.state == "completed" else 0)
        assert len(await world.ledger(job.id)) == 1
        outcomes.add(job.state)
    assert outcomes <= {"completed", "cancelled"}


async def test_reclaim_against_renew_has_one_winner(world: Any) -> None:
    for _ in range(12):
        attempt = await world.running()
        await world.expire(attempt.job_id)

        async def renew(attempt: Attempt = attempt) -> bool:
            async with world.pool.acquire() as conn:
                try:
                    await attempts.renew(conn, attempt, 20)
                except LeaseLostError:
                    return False
                return True

        async def reclaim(attempt: Attempt = attempt) -> bool:
            async with world.pool.acquire() as conn:
                return await sweep.reclaim(conn, attempt.job_id, attempt.epoch) is not None

        renewed, reclaimed = await asyncio.gather(renew(), reclaim())
        assert renewed != reclaimed
        assert (await world.job(attempt.job_id)).state == ("running" if renewed else "queued")


async def test_a_reaper_that_read_before_the_renewal_takes_nothing(world: Any) -> None:
    attempt = await world.running()
    await world.expire(attempt.job_id)
    async with world.pool.acquire() as conn:
        await attempts.renew(conn, attempt, 20)
        assert await sweep.reclaim(conn, attempt.job_id, attempt.epoch) is None


async def test_a_repeated_batch_of_events_repeats_nothing(world: Any) -> None:
    attempt = await world.running()
    batch = [WorkerEvent(1, "phase", {}), WorkerEvent(2, "metrics", {"step": 1, "loss": 2.0})]
    async with world.pool.acquire() as conn:
        assert await attempts.append_events(conn, attempt, batch, "training") == 2
        assert await attempts.append_events(conn, attempt, batch, "training") == 0
        assert await attempts.append_events(conn, attempt, [*batch, WorkerEvent(3, "phase", {})]) == 1
    assert await world.event_types(attempt.job_id) == ["queued", "claimed", "phase", "metrics", "phase"]


async def test_the_later_epoch_wins_a_metric(world: Any) -> None:
    first = await world.running()
    async with world.pool.acquire() as conn:
        await attempts.append_events(conn, first, [WorkerEvent(1, "metrics", {"step": 1, "loss": 1.0})])
        second = await world.claim(await attempts.release(conn, first))
        await attempts.append_events(conn, second, [WorkerEvent(1, "metrics", {"step": 1, "loss": 9.0})])
        points = await jobs.list_metrics(conn, first.job_id, since_step=0, limit=10)
    assert points == [{"step": 1, "loss": 9.0}]


async def test_two_replicas_that_sweep_at_once_ring_and_reclaim_once(world: Any) -> None:
    waiting = await world.train()
    lost = await world.running()
    await world.expire(lost.job_id)

    async def replica() -> tuple[int, int]:
        async with world.pool.acquire() as conn:
            due = [ring for ring in await sweep.due_rings(conn, depth=4, again_s=5) if ring.job_id == waiting.id]
            rung = await sweep.ring(conn, due)
            return len(await sweep.reclaim_expired(conn)), len(rung)

    totals = await asyncio.gather(*(replica() for _ in range(4)))
    assert [sum(column) for column in zip(*totals, strict=True)] == [1, 1]


@pytest.mark.parametrize("write", ["append_events", "commit_checkpoint", "complete_training"])
async def test_a_write_that_waited_for_the_row_sees_what_was_committed_meanwhile(world: Any, write: str) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as ahead, world.pool.acquire() as behind:
        async with ahead.transaction():
            await attempts.append_events(ahead, attempt, [WorkerEvent(1, "phase", {}), WorkerEvent(2, "phase", {})])
            writing = asyncio.create_task(WRITES[write](world, behind, attempt))
            await _waits_for_a_lock(ahead, behind)
        await writing
    written = {"append_events": [], "commit_checkpoint": ["checkpoint"], "complete_training": ["completed"]}[write]
    assert await world.event_types(attempt.job_id) == ["queued", "claimed", "phase", "phase", *written]


async def test_completions_of_one_name_are_numbered_one_at_a_time(world: Any) -> None:
    first = await world.train()
    running = [await world.claim(first)]
    for key in ("a", "b", "c"):
        new = await world.new_train(first.account_id, key)
        async with world.pool.acquire() as conn:
            job, _ = await jobs.submit_job(conn, new)
        running.append(await world.claim(job))

    async def complete(attempt: Attempt) -> None:
        async with world.pool.acquire() as conn:
            await attempts.complete_training(conn, attempt, world.new_model(attempt), {})

    await asyncio.gather(*(complete(attempt) for attempt in running))
    versions = await world.pool.fetch("select version from models where name = 'grown' order by version")
    assert [row["version"] for row in versions] == [1, 2, 3, 4]


async def _waits_for_a_lock(watcher: Any, waiter: Any) -> None:
    async with asyncio.timeout(10):
        while not await watcher.fetchval(  # noqa: ASYNC110 - the condition is in Postgres
            "select exists (select from pg_locks where pid = $1 and not granted)", waiter.get_server_pid()
        ):
            await asyncio.sleep(0.01)
