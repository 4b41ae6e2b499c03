"""A drain holds for whoever comes with the same name into the same pool, until it is undone."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from fusion_core.db import attempts
from fusion_core.db.attempts import Claimer
from fusion_core.db.pool import queries


async def start(world: Any, name: str = "gpu-7", pool: str = "test") -> tuple[UUID, bool]:
    """A process registers, a minute after all that was before: its id, and whether it is drained."""
    await world.pool.execute(
        "update workers set started_at = started_at - interval '1 minute', seen_at = seen_at - interval '1 minute'"
    )
    worker_id = uuid4()
    row = await queries.register_worker(
        world.pool, id=worker_id, name=name, pool=pool, spec_version=1, capabilities=[], version="1", gpus=0
    )
    return worker_id, row["drained"]


async def drain(world: Any, worker_id: UUID) -> None:
    await queries.drain_worker(world.pool, worker_id=worker_id, reason="broken fan")


async def report(world: Any, worker_id: UUID) -> bool:
    row = await queries.worker_seen(world.pool, id=worker_id, state="idle", job_id=None)
    drained: bool = row["drained"]
    return drained


async def claims(world: Any, worker_id: UUID) -> bool:
    job, attempt_id = await world.train(), uuid4()
    async with world.pool.acquire() as conn:
        claimer = Claimer(worker_id=worker_id, pool="test")
        return await attempts.claim(conn, claimer, job.id, job.lease_epoch, attempt_id, 20) is not None


async def test_who_comes_after_a_drained_process_is_drained_and_claims_nothing_until_undrained(world: Any) -> None:
    first, drained = await start(world)
    assert not drained
    await drain(world, first)
    second, drained = await start(world)
    assert drained
    assert not await claims(world, second), "before its first report"
    assert await report(world, second)
    reason = await world.pool.fetchval("select drain_reason from workers where id = $1", second)
    assert reason == "broken fan"
    third, drained = await start(world)
    assert drained
    await queries.undrain_worker(world.pool, worker_id=third)
    assert await claims(world, third)
    assert (await start(world))[1] is False, "the drain that was undone does not come back from older rows"


@pytest.mark.parametrize("other", [{"name": "gpu-8"}, {"pool": "other"}], ids=["name", "pool"])
async def test_another_name_or_pool_is_not_drained(world: Any, other: dict[str, str]) -> None:
    await drain(world, (await start(world))[0])
    assert (await start(world, **other))[1] is False


async def test_one_process_of_many_with_a_name_does_not_drain_the_others(world: Any) -> None:
    processes = [(await start(world))[0] for _ in range(3)]
    for process in processes:
        await report(world, process)
    await drain(world, processes[2])
    again, drained = await start(world)
    assert not drained, "two others of that name work"
    for process in (*processes, again):
        await report(world, process)
        await drain(world, process)
    assert (await start(world))[1] is True


async def test_a_worker_that_crashes_again_and_again_stays_drained(world: Any) -> None:
    await start(world)
    crashing, _ = await start(world)
    await drain(world, crashing)
    for _ in range(3):
        assert (await start(world))[1] is True


async def test_registering_again_keeps_what_the_row_says(world: Any) -> None:
    """The daemon does so after an answer that it lost."""
    facts = {"name": "n", "pool": "test", "spec_version": 1, "capabilities": [], "version": "1", "gpus": 0}
    worker_id = uuid4()
    assert (await queries.register_worker(world.pool, id=worker_id, **facts))["drained"] is False
    await drain(world, worker_id)
    assert (await queries.register_worker(world.pool, id=worker_id, **facts))["drained"] is True
    await queries.undrain_worker(world.pool, worker_id=worker_id)
    assert (await queries.register_worker(world.pool, id=worker_id, **facts))["drained"] is False
