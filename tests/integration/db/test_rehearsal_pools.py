"""Sample jobs: one a base, first in the queue, unseen by customers; and who waits for them, for how long."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from fusion_core.db import attempts, jobs
from fusion_core.db.attempts import Attempt, LeaseLostError
from fusion_core.db.rehearsal_pools import OPERATOR_ACCOUNT, Base, complete_sample, ensure_sampled
from fusion_core.db.rows import JobRow
from fusion_core.trainer_protocol import FileEntry

CONFIG = {"max_position_embeddings": 128}
FILE = FileEntry("train-00000.jsonl", 9, "0" * 64)


async def sample(world: Any, base: Base) -> JobRow | None:
    async with world.pool.acquire() as conn:
        return await ensure_sampled(conn, base, config=CONFIG, rows=4, pool="test")


async def next_claimed(world: Any) -> tuple[UUID, Attempt] | None:
    attempt_id = uuid4()
    async with world.pool.acquire() as conn:
        job = await attempts.claim_next(conn, world.claimer, attempt_id, 20)
    return (job.id, Attempt(job.id, job.lease_epoch, attempt_id)) if job is not None else None


async def test_of_ten_that_ask_at_once_one_makes_the_job(world: Any) -> None:
    base = Base(base_model_id=await world.base_model())
    made = await asyncio.gather(*(sample(world, base) for _ in range(10)))
    (job,) = [one for one in made if one is not None]
    assert (job.account_id, job.type, job.price_version) == (OPERATOR_ACCOUNT, "sample", None)
    assert await world.event_types(job.id) == ["queued"]
    assert job.spec == {"rows": 4, "seq_len": 128, "seed": 0}, "no longer than the base's positions"


async def test_a_train_job_waits_for_the_pool_of_its_base_and_of_no_other(world: Any) -> None:
    train = await world.train()
    sampled = await sample(world, Base(base_model_id=train.base_model_id))
    other = await world.train()
    assert sampled is not None
    claimed = [await next_claimed(world) for _ in range(3)]
    assert [one and one[0] for one in claimed] == [sampled.id, other.id, None]
    assert claimed[0] is not None
    async with world.pool.acquire() as conn:
        for _ in range(2):
            done = await complete_sample(conn, claimed[0][1], [FILE])
    assert (done.state, done.output_model_id, done.result) == ("completed", None, None)
    assert await world.ledger(sampled.id) == []
    waited = await next_claimed(world)
    assert waited is not None
    assert waited[0] == train.id
    assert await sample(world, Base(base_model_id=train.base_model_id)) is None, "there is a pool"


@pytest.mark.parametrize("way_out", ["deadline", "failed", "quarantined"])
async def test_nobody_waits_for_a_pool_that_does_not_come(world: Any, way_out: str) -> None:
    train = await world.train()
    base = Base(base_model_id=train.base_model_id)
    assert await sample(world, base) is not None
    claimed = await next_claimed(world)
    assert claimed is not None
    attempt = claimed[1]
    assert await next_claimed(world) is None
    async with world.pool.acquire() as conn:
        if way_out == "deadline":
            await conn.execute("update jobs set created_at = now() - interval '31 minutes' where id = $1", train.id)
        elif way_out == "failed":
            await attempts.fail(conn, attempt, "base_model_corrupt", "no")
        else:
            await attempts.release(conn, attempt)
            await conn.execute("update jobs set quarantined_at = now() where id = $1", attempt.job_id)
    waited = await next_claimed(world)
    assert waited is not None
    assert waited[0] == train.id
    again = await sample(world, base)
    assert (again is not None) == (way_out == "failed"), "only a failure makes room for another try"


async def test_customers_see_and_cancel_no_sample_job(world: Any) -> None:
    attempt = await world.running()
    job = await world.job(attempt.job_id)
    async with world.pool.acquire() as conn:
        done = await attempts.complete_training(conn, attempt, world.new_model(attempt), {})
        base = Base(model_id=done.output_model_id, account_id=job.account_id)
        sampled = await ensure_sampled(conn, base, config=CONFIG, rows=4, pool="test")
        assert sampled is not None
        assert sampled.account_id == job.account_id, "the pool of an account's model is its own"
        assert await jobs.get_job(conn, job.account_id, sampled.id) is None
        assert await jobs.cancel_job(conn, job.account_id, sampled.id) is None
        listed = await jobs.list_jobs(conn, job.account_id, limit=10)
    assert [one.id for one in listed] == [job.id]


async def test_a_stale_attempt_makes_no_pool(world: Any) -> None:
    train = await world.train()
    await sample(world, Base(base_model_id=train.base_model_id))
    claimed = await next_claimed(world)
    assert claimed is not None
    attempt = claimed[1]
    async with world.pool.acquire() as conn:
        await attempts.release(conn, attempt)
        with pytest.raises(LeaseLostError):
            await complete_sample(conn, attempt, [FILE])
    assert await world.pool.fetchval("select count(*) from rehearsal_pools") == 0
