"""The doorbell: at once, again until claimed, one replica a ring, a shallow queue, and no death by Redis."""

import asyncio
from typing import Any

import msgspec
from arq.jobs import deserialize_job
from arq.utils import timestamp_ms
from arq.worker import Worker, func
from fusion_orchestrator.doorbell import Doorbell, connect_redis
from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.service import running
from fusion_orchestrator.settings import OrchestratorSettings


def doorbell(world: Any, settings: OrchestratorSettings) -> Doorbell:
    return Doorbell(world.pool, world.redis, settings, Metrics())


async def test_a_new_job_is_rung_for_at_once(world: Any, settings: OrchestratorSettings, eventually: Any) -> None:
    async with running(settings) as service:
        await eventually(lambda: _listening(service.metrics))
        job = await world.queue_job()
        await eventually(world.rings, within_s=2)  # a sweep would take 30 s
    assert await world.rings() == [f"{job.id}:0:1"]
    body = await world.redis.get(f"arq:job:{job.id}:0:1")
    called = deserialize_job(body, deserializer=msgspec.json.decode)
    assert (called.function, list(called.args)) == ("claim_job", [str(job.id), 0])


async def _listening(metrics: Metrics) -> bool:
    return b"fusion_doorbell_listening 1.0" in metrics.text()


async def test_a_backlog_is_rung_for_as_it_is_claimed(
    world: Any, settings: OrchestratorSettings, eventually: Any
) -> None:
    jobs = [await world.queue_job() for _ in range(4)]
    slow = msgspec.structs.replace(settings, ring_depth=1, sweep_s=3600)
    async with running(slow):
        for job in jobs:

            async def rung(job: Any = job) -> bool:
                return bool(await world.pool.fetchval("select ring_count = 1 from jobs where id = $1", job.id))

            await eventually(rung)
            await world.redis.zpopmin(world.queue)  # as the worker does that claims it
            await world.claim(job)


async def test_an_arq_worker_hears_it(world: Any, settings: OrchestratorSettings) -> None:
    heard = []

    async def claim_job(_ctx: dict[str, Any], job_id: str, epoch: int) -> None:
        heard.append((job_id, epoch))

    job = await world.queue_job()
    await doorbell(world, settings).ring_due()
    worker = Worker(
        [func(claim_job, name="claim_job", timeout=5, keep_result=0)],
        redis_pool=world.redis,
        queue_name=world.queue,
        burst=True,
        handle_signals=False,
        poll_delay=0.05,
        job_serializer=msgspec.json.encode,
        job_deserializer=msgspec.json.decode,
    )
    async with asyncio.timeout(20):
        await worker.main()
    assert heard == [(str(job.id), 0)]


async def test_it_rings_again_until_the_job_is_claimed(world: Any, settings: OrchestratorSettings) -> None:
    again = doorbell(world, msgspec.structs.replace(settings, ring_again_s=0))
    job = await world.queue_job()
    assert [await again.ring_due() for _ in range(3)] == [1, 1, 1]
    assert await world.rings() == [f"{job.id}:0:{number}" for number in (1, 2, 3)]
    await world.claim(job)
    assert await again.ring_due() == 0


async def test_it_does_not_ring_again_too_soon(world: Any, settings: OrchestratorSettings) -> None:
    bell = doorbell(world, settings)
    await world.queue_job()
    assert [await bell.ring_due() for _ in range(2)] == [1, 0]


async def test_two_replicas_ring_once(world: Any, settings: OrchestratorSettings, eventually: Any) -> None:
    async with running(settings) as one, running(settings) as two:
        await eventually(lambda: _listening(one.metrics))
        await eventually(lambda: _listening(two.metrics))
        submitted = [await world.queue_job() for _ in range(25)]

        async def all_rung() -> bool:
            return await world.count("select count(*) from jobs where ring_count = 0") == 0

        await eventually(all_rung)
        await asyncio.sleep(0.3)  # a second ring would come now
    assert await world.count("select max(ring_count) from jobs") == 1
    assert sorted(await world.rings()) == sorted(f"{job.id}:0:1" for job in submitted)


async def test_racing_passes_ring_once(world: Any, settings: OrchestratorSettings) -> None:
    for _ in range(10):
        await world.queue_job()
    sent = await asyncio.gather(*(doorbell(world, settings).ring_due() for _ in range(4)))
    assert sum(sent) == 10
    assert len(await world.rings()) == 10


async def test_the_queue_stays_shallow_and_what_it_has_no_room_for_stays_due(
    world: Any, settings: OrchestratorSettings
) -> None:
    bell = doorbell(world, msgspec.structs.replace(settings, ring_depth=3))
    submitted = [await world.queue_job() for _ in range(8)]
    assert await bell.ring_due() == 3
    for job in submitted[:2]:
        await world.claim(job)
    assert await bell.ring_due() == 0, "nobody has answered yet"
    assert await world.count("select count(*) from jobs where ring_count > 0") == 3
    await world.redis.zpopmin(world.queue, 2)
    assert await bell.ring_due() == 2
    assert await world.rings() == [f"{job.id}:0:1" for job in submitted[2:5]]


async def test_rings_of_one_pass_are_due_at_once_in_the_order_of_service(
    world: Any, settings: OrchestratorSettings
) -> None:
    submitted = [await world.queue_job() for _ in range(8)]
    assert await doorbell(world, settings).ring_due() == 8
    due = await world.redis.zrangebyscore(world.queue, "-inf", timestamp_ms())
    assert [ring.decode() for ring in due] == [f"{job.id}:0:1" for job in submitted]


async def test_a_job_that_is_being_claimed_is_neither_rung_for_nor_waited_for(
    world: Any, settings: OrchestratorSettings
) -> None:
    held, free = [await world.queue_job() for _ in range(2)]
    async with world.pool.acquire() as claiming, claiming.transaction():
        await claiming.execute("select from jobs where id = $1 for update", held.id)
        async with asyncio.timeout(10):
            assert await doorbell(world, settings).ring_due() == 1
    assert await world.rings() == [f"{free.id}:0:1"]


async def test_expired_rings_leave_the_queue(world: Any, settings: OrchestratorSettings) -> None:
    await world.redis.zadd(world.queue, {"long-ago": 1})
    await world.queue_job()
    await doorbell(world, settings).ring_due()
    assert "long-ago" not in await world.rings()


async def test_a_flushed_redis_is_rung_anew(world: Any, settings: OrchestratorSettings) -> None:
    bell = doorbell(world, msgspec.structs.replace(settings, ring_again_s=0))
    job = await world.queue_job()
    await bell.ring_due()
    await world.redis.delete(world.queue, f"arq:job:{job.id}:0:1")  # what a flush does to this pool
    await bell.ring_due()
    assert await world.rings() == [f"{job.id}:0:2"]


async def test_redis_away_is_counted_and_survived(world: Any, settings: OrchestratorSettings) -> None:
    nobody = connect_redis("redis://127.0.0.1:1/0")
    metrics = Metrics()
    for _ in range(3):
        await world.queue_job()
    assert await Doorbell(world.pool, nobody, settings, metrics).ring_due() == 0
    assert b"fusion_ring_errors_total 1.0" in metrics.text()
    assert await world.count("select count(*) from jobs where ring_count > 0") == 0
    assert await doorbell(world, settings).ring_due() == 3
    await nobody.aclose()


async def test_a_lost_listen_connection_comes_back(world: Any, settings: OrchestratorSettings, eventually: Any) -> None:
    listener = "select coalesce(max(pid), 0) from pg_stat_activity where application_name = 'fusion-doorbell'"
    listener += " and datname = current_database() and pid <> $1"
    async with running(settings) as service:
        await eventually(lambda: _listening(service.metrics))
        killed = await world.count(listener, 0)
        await world.pool.execute("select pg_terminate_backend($1)", killed)
        await eventually(lambda: world.count(listener, killed))
        await eventually(lambda: _listening(service.metrics))
        await world.queue_job()
        await eventually(world.rings, within_s=2)
