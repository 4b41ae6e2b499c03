"""The orchestrator's side of a job: reclaim, ring, expire. Any number of replicas may call these at once."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec

from fusion_core.db.endings import end_cancelled, end_failed, obey_pending, requeue
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.states import STOPPED_EXPIRES_DAYS, State

GONE_WORKER_DAYS = 7


class Ring(msgspec.Struct, frozen=True):
    """A job to ring for, and how often it was rung for: the count is compared and set by `ring`."""

    job_id: UUID
    pool: str
    epoch: int
    ring_count: int


async def begin_sweep(conn: Connection, *, ttl_s: float, gap_s: float) -> bool:
    """Record a sweep; False while expired leases must be left alone because sweeps were missing for `gap_s`."""
    may_reclaim: bool = await queries.begin_sweep(conn, ttl_s=ttl_s, gap_s=gap_s)
    return may_reclaim


async def reclaim_expired(conn: Connection, *, limit: int = 100) -> list[JobRow]:
    """Take expired leases back, each in its own transaction, looking at the row again under its lock."""
    reclaimed = []
    for expired in [row async for row in queries.expired_leases(conn, limit=limit)]:
        job = await reclaim(conn, expired["id"], expired["lease_epoch"])
        if job is not None:
            reclaimed.append(job)
    return reclaimed


async def reclaim(conn: Connection, job_id: UUID, epoch: int) -> JobRow | None:
    """running -> queued, cancelled or stopped. None: it was renewed, reclaimed or ended in the meantime."""
    async with conn.transaction():
        record = await queries.lock_expired(conn, job_id=job_id, epoch=epoch)
        return None if record is None else await requeue(conn, JobRow.of(record), "lost")


async def expire_stopped(conn: Connection, *, days: int = STOPPED_EXPIRES_DAYS, limit: int = 100) -> int:
    """stopped -> cancelled after `days`; answers how many."""
    expired = 0
    for stop in [row async for row in queries.expired_stops(conn, days=days, limit=limit)]:
        async with conn.transaction():
            record = await queries.lock_job(conn, job_id=stop["id"])
            if record["state"] == State.STOPPED:
                job = JobRow.of(record)
                await end_cancelled(conn, job, await queries.cancel_idle_job(conn, job_id=job.id))
                expired += 1
    return expired


async def end_overdue(conn: Connection, *, limit: int = 100) -> list[JobRow]:
    """End queued and running jobs past their deadlines, each in its own transaction."""
    ended = []
    for overdue in [row async for row in queries.overdue_jobs(conn, limit=limit)]:
        async with conn.transaction():
            record = await queries.lock_overdue(conn, job_id=overdue["id"], epoch=overdue["lease_epoch"])
            if record is not None:
                ended.append(await _end_overdue(conn, JobRow.of(record), record["allowed"]))
    return ended


async def _end_overdue(conn: Connection, job: JobRow, allowed: timedelta) -> JobRow:
    """running, queued -> failed, unless its customer has asked for another end before."""
    obeyed = await obey_pending(conn, job) if job.state == State.RUNNING else None
    if obeyed is not None:
        return obeyed
    error = {
        "code": "deadline_exceeded",
        "message": (
            f"The job did not end within {allowed / timedelta(hours=1):.1f} hours of its creation. It was {job.state},"
            f" at step {job.last_checkpoint_step}, interrupted {job.retries} times. Nothing is charged."
        ),
    }
    return await end_failed(conn, job, error)


async def mark_gone_workers(conn: Connection, *, silent_s: float) -> list[Any]:
    """Workers that have neither reported for `silent_s` nor hold a lease are no capacity; old rows are forgotten."""
    gone = [row async for row in queries.mark_gone_workers(conn, silent_s=silent_s)]
    await queries.forget_gone_workers(conn, days=GONE_WORKER_DAYS)
    return gone


async def due_rings(conn: Connection, *, depth: int, again_s: float) -> list[Ring]:
    """The first `depth` claimable jobs of each pool for which no bell has rung within `again_s`."""
    return [
        Ring(row["id"], row["pool"], row["lease_epoch"], row["ring_count"])
        async for row in queries.due_rings(conn, depth=depth, again_s=again_s)
    ]


async def ring(conn: Connection, due: Sequence[Ring]) -> list[Ring]:
    """Win the right to ring: those won, in the order given, with their new counts.

    Another replica rings for the others, or they are just being claimed.
    """
    counts = {
        row["id"]: row["ring_count"]
        async for row in queries.ring_jobs(
            conn,
            job_ids=[ring.job_id for ring in due],
            epochs=[ring.epoch for ring in due],
            ring_counts=[ring.ring_count for ring in due],
        )
    }
    return [msgspec.structs.replace(ring, ring_count=counts[ring.job_id]) for ring in due if ring.job_id in counts]
