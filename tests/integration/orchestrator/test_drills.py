"""Drills: each brings about what an alert is for, and sees its figure cross the threshold in deploy/observability."""

import asyncio
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from fusion_core.db.pool import queries
from fusion_core.states import LOSS_LIMIT
from fusion_orchestrator import figures
from fusion_orchestrator.doorbell import Doorbell
from fusion_orchestrator.figures import Figures
from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.reclaim import mark_gone_workers, reclaim_leases
from fusion_orchestrator.service import running
from fusion_orchestrator.settings import OrchestratorSettings

from tests.alert_rules import threshold


@pytest.fixture(autouse=True)
def always_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_FRESH_S", 0.0)
    monkeypatch.setattr(figures, "_REST", 0.0)


async def figure(world: Any, name: str, **labels: str) -> float:
    """0 where there is no such sample."""
    metrics = Metrics()
    await Figures(world.pool, metrics).refresh()
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def idle_worker(world: Any) -> None:
    await queries.register_worker(
        world.pool, id=uuid4(), name="w", pool=world.job_pool, spec_version=1, capabilities=[], version="0", gpus=0
    )  # fmt: skip


async def test_jobs_wait_although_a_worker_idles(world: Any) -> None:
    await idle_worker(world)
    await world.queue_job()
    most = threshold("FusionQueueNotMoving", "fusion_queue_age_seconds")
    assert await figure(world, "fusion_queue_age_seconds", pool=world.job_pool) < most
    ago = timedelta(minutes=2)
    await world.pool.execute(
        "update jobs set created_at = now() - $1::interval, not_before = now() - $1::interval", ago
    )
    assert await figure(world, "fusion_queue_age_seconds", pool=world.job_pool) > most
    assert await figure(world, "fusion_workers", pool=world.job_pool, state="idle") > 0


async def test_a_pool_has_work_and_no_worker(world: Any) -> None:
    await world.queue_job()
    wanted = await figure(world, "fusion_pool_demand", pool=world.job_pool)
    assert wanted > threshold("FusionPoolWithoutWorkers", "fusion_pool_demand")
    for state in ("idle", "busy"):
        assert await figure(world, "fusion_workers", pool=world.job_pool, state=state) == 0


async def test_workers_die_one_after_the_other(world: Any, settings: OrchestratorSettings) -> None:
    metrics = Metrics()
    for _ in range(3):
        await idle_worker(world)
    await mark_gone_workers(world.pool, settings, metrics)
    assert metrics.registry.get_sample_value("fusion_workers_lost_total", {"pool": world.job_pool}) is None
    await world.pool.execute("update workers set seen_at = now() - interval '1 h'")
    assert await figure(world, "fusion_workers", pool=world.job_pool, state="silent") == 3
    for _ in range(2):  # the second finds nobody new
        await mark_gone_workers(world.pool, settings, metrics)
    lost = metrics.registry.get_sample_value("fusion_workers_lost_total", {"pool": world.job_pool})
    assert lost is not None
    assert lost > threshold("FusionWorkersLost", "fusion_workers_lost_total")


async def test_workers_die_with_their_jobs(world: Any, settings: OrchestratorSettings) -> None:
    await world.swept_without_a_gap()
    for _ in range(6):
        await world.expire(await world.claim(await world.queue_job()))
    assert await figure(world, "fusion_leases_overdue") > threshold("FusionLeasesOverdue", "fusion_leases_overdue")
    metrics = Metrics()
    await reclaim_leases(world.pool, settings, metrics)
    reclaimed = metrics.registry.get_sample_value("fusion_reclaims_total")
    assert reclaimed is not None
    assert reclaimed > threshold("FusionReclaimsRising", "fusion_reclaims_total")
    assert await figure(world, "fusion_leases_overdue") == 0, "the sweep has put it right"


async def test_a_job_loses_its_workers_until_it_is_held(world: Any) -> None:
    job = await world.queue_job()
    for _ in range(LOSS_LIMIT):
        await world.pool.execute("update jobs set not_before = now()")
        job = await world.lose(await world.claim(job))
    held = await figure(world, "fusion_quarantined_jobs", pool=world.job_pool)
    assert held > threshold("FusionJobsQuarantined", "fusion_quarantined_jobs")


async def test_webhooks_pile_up(world: Any) -> None:
    endpoint = await world.webhook("https://example.com/hook")
    async with world.pool.acquire() as conn:
        await queries.insert_test_delivery(conn, webhook_id=endpoint["id"], type="webhook.test", data={})
    most = threshold("FusionWebhookBacklogOld", "fusion_webhook_backlog_age_seconds")
    assert await figure(world, "fusion_webhook_backlog_age_seconds") < most
    await world.pool.execute("update webhook_deliveries set next_attempt_at = now() - interval '10 min'")
    assert await figure(world, "fusion_webhook_backlog_age_seconds") > most


async def test_a_pause_is_forgotten(world: Any) -> None:
    await world.pool.execute("insert into dispatch_pauses (pool, reason) values ('cpu', 'maintenance')")
    assert await figure(world, "fusion_holds", kind="pause") > threshold("FusionHoldForgotten", "fusion_holds")


async def test_a_loop_of_the_orchestrator_stands_still(
    settings: OrchestratorSettings, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    async with running(msgspec.structs.replace(settings, sweep_s=0.02)) as service:

        def last_pass() -> float:
            moment = service.metrics.registry.get_sample_value(
                "fusion_loop_last_pass_timestamp_seconds", {"loop": "ring"}
            )
            return moment or 0.0

        async def passed() -> bool:
            return last_pass() > 0

        await eventually(passed)

        async def breaks(_doorbell: Doorbell) -> int:
            raise LookupError("a bug")

        monkeypatch.setattr(Doorbell, "ring_due", breaks)
        most = threshold("FusionLoopErrors", "fusion_loop_errors_total")

        async def failed_often() -> bool:
            failed = service.metrics.registry.get_sample_value("fusion_loop_errors_total", {"loop": "ring"})
            return (failed or 0.0) > most

        await eventually(failed_often)
        stood = last_pass()
        await eventually(failed_often)
        assert last_pass() == stood, "a pass that failed is none"
        overdue = service.metrics.registry.get_sample_value("fusion_loop_overdue_after_seconds", {"loop": "ring"})
        assert overdue == 180
        assert time.time() + 200 - stood > overdue


async def test_every_loop_says_from_its_beginning_when_it_is_overdue(settings: OrchestratorSettings) -> None:
    """All but `listen` and `webhook_tasks`, which have no passes: FusionDoorbellDeaf and FusionWebhookBacklogOld."""
    began = time.time()
    async with running(settings) as service:
        await asyncio.sleep(0)  # each has begun
        names = {task.get_name() for task in service.tasks} - {"listen", "webhook_tasks"}
        assert {"retention", "prune", "sweep"} < names
        value = service.metrics.registry.get_sample_value
        for name in names:
            assert (value("fusion_loop_last_pass_timestamp_seconds", {"loop": name}) or 0) >= began - 1, name
            assert (value("fusion_loop_overdue_after_seconds", {"loop": name}) or 0) >= 180
        assert value("fusion_loop_overdue_after_seconds", {"loop": "retention"}) == 3 * 3600
        assert value("fusion_loop_overdue_after_seconds", {"loop": "prune"}) == 8 * 3600
