"""The sweeps: what has a deadline and has passed it. Any number of replicas may sweep at once."""

import structlog
from fusion_core.db import sweep
from fusion_core.db.pool import Pool

from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.settings import OrchestratorSettings

log = structlog.get_logger()


async def reclaim_leases(pool: Pool, settings: OrchestratorSettings, metrics: Metrics) -> int:
    """One sweep; answers how many leases were reclaimed.

    After a gap in everybody's sweeps nothing is reclaimed for one lease's time: the outage that stopped the sweeps
    stopped the heartbeats too.
    """
    with metrics.sweep_seconds.time():
        async with pool.acquire() as conn:
            if not await sweep.begin_sweep(conn, ttl_s=settings.lease_ttl_s, gap_s=settings.sweep_gap_s):
                return 0
            reclaimed = await sweep.reclaim_expired(conn)
    for job in reclaimed:
        log.warning("lease_reclaimed", job_id=str(job.id), epoch=job.lease_epoch, state=job.state, retries=job.retries)
    metrics.reclaims.inc(len(reclaimed))
    return len(reclaimed)


async def expire_stopped(pool: Pool, metrics: Metrics) -> int:
    """Cancel the jobs that have been stopped for too long; answers how many."""
    async with pool.acquire() as conn:
        expired = await sweep.expire_stopped(conn)
    metrics.expired_stops.inc(expired)
    if expired:
        log.info("stopped_jobs_expired", jobs=expired)
    return expired


async def end_overdue(pool: Pool) -> int:
    """End the jobs that are past their deadlines as failed; answers how many."""
    async with pool.acquire() as conn:
        ended = await sweep.end_overdue(conn)
    for job in ended:
        log.warning("job_overdue", job_id=str(job.id), state=job.state)
    return len(ended)


async def mark_gone_workers(pool: Pool, settings: OrchestratorSettings, metrics: Metrics) -> int:
    """Workers that fell silent are gone until they report again; answers how many."""
    async with pool.acquire() as conn:
        gone = await sweep.mark_gone_workers(conn, silent_s=settings.worker_gone_s)
    for worker in gone:
        metrics.workers_lost.labels(worker["pool"]).inc()
        log.warning("worker_silent", worker_id=str(worker["id"]), name=worker["name"], pool=worker["pool"])
    return len(gone)
