"""Why a queued job is not running: each reason is said when it holds, and no other."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from fusion_core.db.pool import queries
from fusion_core.db.rehearsal_pools import Base, ensure_sampled
from fusion_core.db.waiting import REASONS, SENTENCES, explain

from .dispatch import queue

MAKE: dict[str, str] = {
    "quarantined": "update jobs set quarantined_at = now()",
    "account_paused": "insert into dispatch_pauses (account_id, reason) select account_id, 'unpaid' from jobs limit 1",
    "pool_paused": "insert into dispatch_pauses (pool, reason) values ('test', 'upgrade')",
    "pool_cordoned": "insert into pools (name, cordoned_at, cordon_reason) values ('test', now(), 'broken fan')",
    "account_limit": "update accounts set max_running_jobs = 0",
    "deadline_passed": "update jobs set deadline_at = now()",
    "backing_off": "update jobs set not_before = now() + interval '1 hour'",
    "no_worker": "update workers set drain_requested_at = now(), drain_reason = 'reboot'",
    "behind": "update workers set state = 'busy'",
}
NO_HOLD = {"no_worker", "behind"}


async def waits_for(world: Any, job_id: UUID) -> list[str]:
    reasons: list[str] = await world.pool.fetchval("select waits_for(j) from jobs j where id = $1", job_id)
    return reasons


async def worker(world: Any) -> None:
    facts = {"name": "w", "pool": "test", "spec_version": 1, "capabilities": [], "version": "1", "gpus": 1}
    await queries.register_worker(world.pool, id=uuid4(), **facts)


@pytest.mark.parametrize("reason", MAKE)
async def test_each_reason_is_said_alone_and_holds_or_does_not(world: Any, reason: str) -> None:
    await worker(world)
    _, (job_id,) = await queue(world, 1)
    assert await waits_for(world, job_id) == []
    await world.pool.execute(MAKE[reason])
    assert await waits_for(world, job_id) == [reason]
    claimable = await world.pool.fetchval("select count(*) from claimable where id = $1", job_id)
    assert claimable == (1 if reason in NO_HOLD else 0)


async def test_a_job_waits_for_the_text_of_its_base(world: Any) -> None:
    await worker(world)
    job = await world.train()
    base_model_id = await world.pool.fetchval("select base_model_id from jobs where id = $1", job.id)
    async with world.pool.acquire() as conn:
        base = Base(account_id=job.account_id, base_model_id=base_model_id)
        await ensure_sampled(conn, base, config={}, rows=8, pool="test")
    assert await waits_for(world, job.id) == ["rehearsal_pool"]


async def test_a_running_job_waits_for_nothing(world: Any) -> None:
    assert await waits_for(world, (await world.running()).job_id) == []


async def test_every_reason_that_holds_is_said(world: Any) -> None:
    _, (job_id,) = await queue(world, 1)
    for reason in MAKE.keys() - NO_HOLD:
        await world.pool.execute(MAKE[reason])
    assert await waits_for(world, job_id) == [one for one in MAKE if one not in NO_HOLD] + ["no_worker"]


async def test_the_list_is_closed_and_has_a_sentence_for_each(world: Any) -> None:
    assert set(REASONS) == set(SENTENCES) == {*MAKE, "rehearsal_pool"}
    now = await world.pool.fetchrow("select now() as later, now() as made")
    said = explain(REASONS, not_before=now["later"], created_at=now["made"])
    assert [one.reason for one in said if one.until is not None] == ["backing_off", "rehearsal_pool"]
