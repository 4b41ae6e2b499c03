"""The ledger is checked as jobs end: what was billed is counted, and an entry that is absent or wrong shows."""

from typing import Any

import pytest
from fusion_core.db import attempts, checkpoints, jobs, webhooks
from fusion_core.db.attempts import WorkerEvent
from fusion_orchestrator.event_counts import count_events
from fusion_orchestrator.figures import Figures
from fusion_orchestrator.metrics import Metrics


async def counted(world: Any) -> Metrics:
    metrics = Metrics()
    async with world.pool.acquire() as conn:
        count_events(metrics, await webhooks.fan_out(conn, limit=100))
    return metrics


async def completed(world: Any) -> Any:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        return await attempts.complete_training(conn, attempt, world.new_model(attempt), {})


async def test_what_was_billed_is_counted(world: Any) -> None:
    job = await completed(world)
    metrics = await counted(world)
    (billed,) = await world.ledger(job.id)
    assert billed > 0
    assert metrics.registry.get_sample_value("fusion_ledger_microusd_total", {"type": "train"}) == billed
    assert metrics.registry.get_sample_value("fusion_ledger_faults_total") == 0


@pytest.mark.parametrize("damage", ["delete from ledger", "update ledger set amount_microusd = amount_microusd + 1"])
async def test_an_entry_that_is_absent_or_wrong_shows(world: Any, damage: str) -> None:
    await completed(world)
    await world.pool.execute(damage)
    assert (await counted(world)).registry.get_sample_value("fusion_ledger_faults_total") == 1


async def test_failures_are_counted_by_code_and_cancelled_jobs_have_an_entry(world: Any) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        await attempts.fail(conn, attempt, "nonfinite_loss", "x")
        odd = await world.running()
        await attempts.fail(conn, odd, "code_of_another_release", "x")
        queued = await world.train()
        await jobs.cancel_job(conn, queued.account_id, queued.id)
    metrics = await counted(world)
    for state, code in (("failed", "nonfinite_loss"), ("failed", "other"), ("cancelled", "none")):
        labels = {"type": "train", "state": state, "code": code}
        assert metrics.registry.get_sample_value("fusion_jobs_ended_total", labels) == 1, labels
    assert metrics.registry.get_sample_value("fusion_ledger_faults_total") == 0


async def test_the_age_of_the_last_checkpoint_of_running_jobs(world: Any) -> None:
    fresh, old = await world.running(), await world.running()
    await world.pool.execute("update jobs set claimed_at = now() - interval '2 h'")
    async with world.pool.acquire() as conn:
        await attempts.append_events(conn, old, [WorkerEvent(1, "phase", {})], "training")
        await checkpoints.commit_checkpoint(conn, fresh, world.new_checkpoint(fresh, 5))
    metrics = Metrics()
    await Figures(world.pool, metrics).refresh()
    oldest = metrics.registry.get_sample_value("fusion_checkpoint_age_seconds", {"pool": "test"})
    assert oldest is not None
    assert 7200 <= oldest < 7300
    ages = {
        sample.labels["le"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "fusion_checkpoint_age_jobs"
    }
    assert ages == {"60": 1, "300": 1, "600": 1, "1800": 1, "3600": 1, "14400": 2, "+Inf": 2}
