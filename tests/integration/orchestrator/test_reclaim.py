"""Reclaim: once whatever the number of replicas, and not at all right after an outage of the sweeps themselves."""

import asyncio
from typing import Any

import msgspec
from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.reclaim import expire_stopped, reclaim_leases
from fusion_orchestrator.service import running
from fusion_orchestrator.settings import OrchestratorSettings


async def test_two_replicas_reclaim_each_lease_once(
    world: Any, settings: OrchestratorSettings, eventually: Any
) -> None:
    await world.swept_without_a_gap()
    attempts = [await world.claim(await world.queue_job()) for _ in range(15)]
    for attempt in attempts:
        await world.expire(attempt)
    fast = msgspec.structs.replace(settings, sweep_s=0.1)
    async with running(fast), running(fast):

        async def none_running() -> bool:
            return await world.count("select count(*) from jobs where state = 'running'") == 0

        await eventually(none_running)
        await asyncio.sleep(0.3)  # a second reclaim would come now
    assert await world.count("select count(*) from jobs where state = 'queued' and retries = 1") == 15
    assert await world.count("select count(*) from job_events where type = 'interrupted'") == 15


async def test_after_a_gap_in_the_sweeps_a_whole_lease_passes_first(world: Any, settings: OrchestratorSettings) -> None:
    short = msgspec.structs.replace(settings, lease_ttl_s=0.5, sweep_gap_s=0.2)
    await world.pool.execute(
        "insert into sweeps (last_sweep_at, reclaim_after) values (now() - interval '1 h', now() - interval '1 h')"
    )
    await world.expire(await world.claim(await world.queue_job()))
    metrics = Metrics()
    assert await reclaim_leases(world.pool, short, metrics) == 0
    reclaimed = 0
    for _ in range(10):
        await asyncio.sleep(0.1)
        reclaimed += await reclaim_leases(world.pool, short, metrics)
    assert reclaimed == 1
    assert b"fusion_reclaims_total 1.0" in metrics.text()


async def test_a_living_lease_is_left_alone(world: Any, settings: OrchestratorSettings) -> None:
    await world.swept_without_a_gap()
    await world.claim(await world.queue_job())
    assert await reclaim_leases(world.pool, settings, Metrics()) == 0


async def test_a_job_stopped_for_too_long_is_cancelled(world: Any) -> None:
    old, young = await world.queue_job(), await world.queue_job()
    stop = "update jobs set state = 'stopped', stopped_at = now() - make_interval(days => $2) where id = $1"
    await world.pool.execute(stop, old.id, 31)
    await world.pool.execute(stop, young.id, 29)
    assert await expire_stopped(world.pool, Metrics()) == 1
    states = dict(await world.pool.fetch("select id, state from jobs"))
    assert states == {old.id: "cancelled", young.id: "stopped"}
