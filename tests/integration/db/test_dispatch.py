"""Who is served next: priority, then fair share between accounts, then age; and how many jobs of an account run."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from fusion_core.db import attempts, sweep
from fusion_core.db.pool import queries
from fusion_core.db.rows import JobRow

from .dispatch import claim_next, end, ends_before_start, pages_read, queue

LINE = "select id from serving_order('test', $1)"


async def claim(world: Any, job_id: UUID) -> JobRow | None:
    async with world.pool.acquire() as conn:
        return await attempts.claim(conn, world.claimer, job_id, 0, uuid4(), 20)


async def running(world: Any, account_id: UUID) -> tuple[int, int]:
    """An account's running jobs: how many there are, and how many are counted."""
    return tuple(  # type: ignore[return-value]  # two columns
        await world.pool.fetchrow(
            "select count(j.id), min(r.jobs) from accounts_running r"
            " left join jobs j on j.account_id = r.account_id and j.state = 'running' where r.account_id = $1",
            account_id,
        )
    )


@pytest.mark.parametrize("workers", [1, 4])
async def test_the_only_job_of_an_account_waits_for_one_job_of_a_busy_one_at_most(world: Any, workers: int) -> None:
    await queue(world, 1000)
    async with world.pool.acquire() as conn:
        held = [await claim_next(world, conn) for _ in range(workers)]
        _, (only,) = await queue(world, 1)
        await end(conn, held[0])
    assert await ends_before_start(world, only, 1) == 0, "the first machine that was free took it"


async def test_accounts_within_a_priority_share_alike(world: Any) -> None:
    accounts = [(await queue(world, count))[0] for count in (50, 20, 10)]
    async with world.pool.acquire() as conn:
        claimed = [await claim_next(world, conn) for _ in range(30)]
    assert {account: sum(job.account_id == account for job in claimed if job) for account in accounts} == dict.fromkeys(
        accounts, 10
    )


async def test_a_higher_priority_goes_first_whatever_its_account_runs(world: Any) -> None:
    _, normal = await queue(world, 2)
    _, low = await queue(world, 2, priority=-1)
    _, high = await queue(world, 2, priority=1)
    async with world.pool.acquire() as conn:
        claimed = [job.id for _ in range(6) if (job := await claim_next(world, conn))]
    assert claimed == [*high, *normal, *low]


async def test_rings_claims_and_places_follow_one_order(world: Any) -> None:
    for count, priority in ((5, 0), (2, 0), (3, 1), (1, -1)):
        await queue(world, count, priority=priority)
    async with world.pool.acquire() as conn:
        order = [row["id"] for row in await conn.fetch(LINE, 100)]
        places = [(await queries.queue_of_job(conn, job_id=job_id, most=1000, recent=20))["ahead"] for job_id in order]
        assert [ring.job_id for ring in await sweep.due_rings(conn, depth=100, again_s=5)] == order
        assert [job.id for _ in order if (job := await claim_next(world, conn))] == order
    assert places == list(range(11))


async def test_claims_at_once_never_pass_the_limit_of_an_account(world: Any) -> None:
    for _ in range(5):
        account_id, waiting = await queue(world, 12, limit=3)
        claimed = await asyncio.gather(*(claim(world, job_id) for job_id in waiting))
        assert len([job for job in claimed if job]) == 3
        assert await running(world, account_id) == (3, 3)


async def test_claims_at_once_get_different_jobs(world: Any) -> None:
    _, waiting = await queue(world, 10)

    async def next_one() -> JobRow | None:
        async with world.pool.acquire() as conn:
            return await claim_next(world, conn)

    claimed = await asyncio.gather(*(next_one() for _ in range(10)))
    assert {job.id for job in claimed if job} == set(waiting)


async def test_claims_pass_over_what_others_hold_and_nothing_else(world: Any) -> None:
    for count, priority in ((4, 0), (2, 0), (7, 1), (1, 1)):
        await queue(world, count, priority=priority)
    async with world.pool.acquire() as conn, world.pool.acquire() as other, other.transaction():
        order = [row["id"] for row in await conn.fetch(LINE, 100)]
        for job_id in order:
            (free,) = await conn.fetch("select id from lock_next_job('test', 1, '{}')")
            assert free["id"] == job_id, "the first that is free, however many of its line are held"
            await other.execute("select from jobs where id = $1 for update", job_id)
        assert await conn.fetch("select id from lock_next_job('test', 1, '{}')") == []


async def test_every_way_out_of_running_frees_a_place(world: Any) -> None:
    attempt = await world.running()
    account_id = (await world.job(attempt.job_id)).account_id
    async with world.pool.acquire() as conn:
        for again in (
            lambda one: attempts.release(conn, one),
            lambda one: attempts.crash(conn, one, "trainer_crashed", "no"),
            lambda one: attempts.complete_training(conn, one, world.new_model(one), {}),
        ):
            assert await running(world, account_id) == (1, 1)
            job = await again(attempt)
            assert await running(world, account_id) == (0, 0)
            if job.state == "queued":
                await world.be_due(job.id)
                attempt = await world.claim(job)


async def test_a_claim_that_is_taken_back_counts_nothing(world: Any) -> None:
    account_id, (job_id,) = await queue(world, 1)
    async with world.pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        assert await attempts.claim(conn, world.claimer, job_id, 0, uuid4(), 20) is not None
        await transaction.rollback()
    assert await running(world, account_id) == (0, 0)


HOLDS = {
    "cordoned pool": "insert into pools (name, cordoned_at, cordon_reason) values ('test', now(), 'broken fan')",
    "paused pool": "insert into dispatch_pauses (pool, reason) values ('test', 'upgrade')",
    "paused account": "insert into dispatch_pauses (account_id, reason) select account_id, 'unpaid' from jobs",
    "paused account in the pool": "insert into dispatch_pauses (pool, account_id, reason)"
    " select pool, account_id, 'unpaid' from jobs",
    "deadline": "update jobs set deadline_at = now()",
    "backing off": "update jobs set not_before = now() + interval '1 hour'",
    "quarantine": "update jobs set quarantined_at = now()",
    "limit": "update accounts set max_running_jobs = 0",
    "draining worker": "update workers set drain_requested_at = now(), drain_reason = 'reboot'",
    "older worker": "update jobs set spec_version = 1000",
    "missing capability": "update jobs set requirements = '{fsdp}'",
}


@pytest.mark.parametrize("hold", HOLDS)
async def test_what_holds_a_job_back_holds_it_from_every_way_to_claim(world: Any, hold: str) -> None:
    worker = {"name": "w", "pool": "test", "spec_version": 1, "capabilities": [], "version": "1", "gpus": 1}
    await queries.register_worker(world.pool, id=world.claimer.worker_id, **worker)
    _, (job_id,) = await queue(world, 1)
    await world.pool.execute(HOLDS[hold])
    async with world.pool.acquire() as conn:
        assert await claim_next(world, conn) is None
        rings = await sweep.due_rings(conn, depth=4, again_s=5)
    assert await claim(world, job_id) is None
    mine_alone = hold in ("draining worker", "older worker", "missing capability")  # another worker may take it
    assert [ring.job_id for ring in rings] == ([job_id] if mine_alone else [])


async def test_the_head_of_the_queue_costs_the_same_however_long_it_is(world: Any) -> None:
    async with world.pool.acquire() as conn:
        pages = []
        for count in (100, 20_000):
            _, waiting = await queue(world, count)
            await conn.execute("vacuum analyze jobs")
            pages.append(await pages_read(conn, LINE, 1))
            place = await queries.queue_of_job(conn, job_id=waiting[-1], most=1000, recent=20)
        assert place["ahead"] == 1000, "counted no further"
    short, long = pages
    assert long <= 3 * short, "one account more, 200 times the jobs"
