"""What Prometheus is told of a worker, over HTTP, as real jobs pass through it."""

import asyncio
from typing import Any

import httpx
from fusion_local.stack import free_port
from prometheus_client.parser import text_string_to_metric_families

from .conftest import until as wait_until


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Samples by (name, *label values)."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    families = list(text_string_to_metric_families(text))
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


async def scraped(port: int, *sample: str, until: float) -> dict[tuple[str, ...], float]:
    """The figures once a sample has reached a value: that much, or 0."""
    seen: dict[tuple[str, ...], float] = {}

    async def reached() -> bool:
        seen.update(await asyncio.to_thread(scrape, port))
        return seen[sample] >= until if until else seen[sample] == 0

    await wait_until(reached, f"{sample} at {until}")
    return seen


async def test_a_workers_figures(site: Any, start_daemon: Any) -> None:
    port = free_port()
    await start_daemon(metrics_port=port)
    base = await site.base_model()
    await site.reaches(await site.train(base_model_id=base), "completed")
    await site.reaches(await site.train(base_model_id=base), "completed")
    await site.reaches(await site.train("crash"), "queued")
    await site.has_event(await site.train("crash"), "interrupted")
    seen = await scraped(port, "fusion_worker_busy", until=0)
    assert seen["fusion_worker_attempt_duration_seconds_count", "train"] >= 3
    assert seen["fusion_worker_crashes_total", "trainer_crashed"] >= 1
    assert seen["fusion_worker_checkpoint_upload_seconds_count",] >= 1
    assert seen["fusion_worker_checkpoint_upload_bytes_sum",] >= 1001
    assert seen["fusion_worker_step_seconds_count",] >= 8
    assert seen["fusion_worker_input_cache_lookups_total", "hit"] >= 2, "the second job finds the base's files"
    assert seen["fusion_worker_disk_free_bytes",] > seen["fusion_worker_disk_needed_bytes",] == 0


async def test_heartbeats_are_counted(site: Any, start_daemon: Any) -> None:
    port = free_port()
    await start_daemon(metrics_port=port)
    job_id = await site.train("sleep")
    await site.has_event(job_id, "checkpoint")
    seen = await scraped(port, "fusion_worker_lease_renewals_total", "renewed", until=1)
    assert seen["fusion_worker_busy",] == 1
    assert seen["fusion_worker_lease_renewals_total", "missed"] == 0
    taken = "update jobs set lease_epoch = lease_epoch + 1, attempt_id = gen_random_uuid() where id = $1"
    await site.pool.execute(taken, job_id)
    await scraped(port, "fusion_worker_lease_renewals_total", "lost", until=1)
