"""What Prometheus and an autoscaler are told of the rows: demand, ages, workers; and what each event counts as."""

from typing import Any
from uuid import uuid4

import msgspec
import pytest
from fusion_core.db import webhooks
from fusion_core.db.pool import queries
from fusion_orchestrator import figures
from fusion_orchestrator.event_counts import count_events
from fusion_orchestrator.figures import Figures
from fusion_orchestrator.http_app import create_app
from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.settings import OrchestratorSettings
from litestar.testing import AsyncTestClient


@pytest.fixture(autouse=True)
def always_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_FRESH_S", 0.0)
    monkeypatch.setattr(figures, "_REST", 0.0)


async def read(world: Any) -> Metrics:
    metrics = Metrics()
    await Figures(world.pool, metrics).refresh()
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_demand_is_what_runs_and_what_may_start(world: Any) -> None:
    jobs = [await world.queue_job() for _ in range(4)]
    await world.claim(jobs[0])
    later = "update jobs set not_before = now() + interval '1 h' where id = $1"
    await world.pool.execute(later, jobs[1].id)
    assert value(await read(world), "fusion_pool_demand", pool=world.job_pool) == 3

    await world.pool.execute("update accounts set max_running_jobs = 2 where id = $1", await world.account())
    assert value(await read(world), "fusion_pool_demand", pool=world.job_pool) == 2, "an account's limit is no demand"

    await world.pool.execute("insert into dispatch_pauses (pool, reason) values ($1, 'maintenance')", world.job_pool)
    metrics = await read(world)
    assert value(metrics, "fusion_pool_demand", pool=world.job_pool) == 1
    assert value(metrics, "fusion_queue_age_seconds", pool=world.job_pool) == 0, "nobody waits for a worker"


async def test_the_queues_age_is_that_of_the_job_that_could_have_started_first(world: Any) -> None:
    old, held = await world.queue_job(), await world.queue_job()
    aged = (
        "update jobs set created_at = now() - make_interval(secs => $2), not_before = now() - make_interval(secs => $3)"
    )
    await world.pool.execute(f"{aged} where id = $1", old.id, 500.0, 100.0)
    await world.pool.execute(f"{aged}, quarantined_at = now() where id = $1", held.id, 900.0, 900.0)
    metrics = await read(world)
    waited = value(metrics, "fusion_queue_age_seconds", pool=world.job_pool)
    assert waited is not None
    assert 100 <= waited < 200
    assert value(metrics, "fusion_quarantined_jobs", pool=world.job_pool) == 1


async def test_an_autoscaler_reads_one_number(world: Any, settings: OrchestratorSettings) -> None:
    for _ in range(3):
        await world.queue_job()
    await world.pool.execute("insert into pools (name) values ('idle')")
    async with AsyncTestClient(create_app(settings)) as client:
        assert (await client.get(f"/demand/{world.job_pool}")).json() == {"demand": 3}
        assert (await client.get("/demand/idle")).json() == {"demand": 0}
        assert (await client.get("/demand/unheard-of")).json() == {"demand": 0}
        assert 'fusion_pool_demand{pool="idle"} 0.0' in (await client.get("/metrics")).text


async def test_without_postgres_an_autoscaler_is_told_nothing(settings: OrchestratorSettings) -> None:

    away = msgspec.structs.replace(settings, database_url="postgresql://nobody@127.0.0.1:1/none")
    async with AsyncTestClient(create_app(away)) as client:
        assert (await client.get("/demand/cpu")).status_code == 503
        assert "fusion_database_up 0.0" in (await client.get("/metrics")).text


async def test_workers_that_fell_silent_are_told_from_those_at_work(world: Any) -> None:
    silent, idle, busy = uuid4(), uuid4(), world.claimer.worker_id
    for worker_id in (silent, idle, busy):
        await queries.register_worker(
            world.pool,
            id=worker_id,
            name="w",
            pool=world.job_pool,
            spec_version=1,
            capabilities=[],
            version="0",
            gpus=0,
        )
    job = await world.queue_job()
    await world.claim(job)
    await queries.worker_seen(world.pool, id=busy, state="busy", job_id=job.id)
    quiet = "update workers set seen_at = now() - interval '1 h', failures = 3 where id = any($1)"
    await world.pool.execute(quiet, [silent, busy])
    metrics = await read(world)
    for state, workers in {"silent": 1, "idle": 1, "busy": 1}.items():
        assert value(metrics, "fusion_workers", pool=world.job_pool, state=state) == workers, state
    assert value(metrics, "fusion_worker_failures_in_a_row", pool=world.job_pool) == 3


async def test_an_overdue_lease_shows(world: Any) -> None:
    await world.expire(await world.claim(await world.queue_job()))
    assert value(await read(world), "fusion_leases_overdue") == 1


async def test_each_event_is_counted_once(world: Any) -> None:
    job = await world.queue_job()
    lost = await world.lose(await world.claim(job))
    await world.pool.execute("update jobs set not_before = now() where id = $1", job.id)
    await world.finish(lost)
    metrics = Metrics()
    async with world.pool.acquire() as conn:
        while events := await webhooks.fan_out(conn, limit=2):
            count_events(metrics, events)
    assert value(metrics, "fusion_attempts_total", pool=world.job_pool, type="ingest") == 2
    assert value(metrics, "fusion_claim_latency_seconds_count", pool=world.job_pool) == 1, "the first claim alone"
    assert value(metrics, "fusion_interruptions_total", reason="lost", code="none") == 1
    assert value(metrics, "fusion_jobs_ended_total", type="ingest", state="completed", code="none") == 1


async def test_whoever_asks_again_and_again_costs_postgres_nothing(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_FRESH_S", 60.0)
    metrics = Metrics()
    reading = Figures(world.pool, metrics)
    await reading.refresh()
    await world.queue_job()
    await reading.refresh()
    assert value(metrics, "fusion_pool_demand", pool=world.job_pool) is None
