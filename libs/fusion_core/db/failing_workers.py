"""A worker on which job after job crashes takes no more; a job that crashes everywhere drains nobody.

Each job counts once against a worker, jobs of one dataset together once, and nothing of a job counts that has crashed
often enough to be its own fault. Whatever the worker gets done clears it (the trigger `worker_got_somewhere`).
Everything here runs in its caller's transaction, with the job's row locked.
"""

from uuid import UUID

from fusion_core.db import audit
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.states import FAILING_WORKER_LIMIT

RULE = f"{audit.RULE}failing-worker"
GPU_FAULT = "gpu_fault"
# What is in S3, or not, every worker finds alike.
SHARED_CAUSES = frozenset({"storage_unavailable", "inputs_unavailable", "upload_failed"})


async def blame(conn: Connection, job: JobRow, code: str) -> None:
    """Count a crash against the worker that holds the lease, and drain it where it is one too many."""
    worker_id = job.lease_owner
    if worker_id is None or code in SHARED_CAUSES:
        return
    subject = job.dataset_id or job.id
    await queries.insert_worker_crash(conn, worker_id=worker_id, job_id=job.id, subject=subject, code=code)
    failures = await queries.count_failures(conn, worker_id=worker_id)
    if failures is not None and failures >= FAILING_WORKER_LIMIT:
        crashed = [row async for row in queries.crashes_of_worker(conn, worker_id=worker_id)][:FAILING_WORKER_LIMIT]
        jobs = ", ".join(f"{row['job_id']} ({row['code']})" for row in crashed)
        await _drain(conn, worker_id, f"three jobs in a row crashed here: {jobs}")


async def blame_gpu(conn: Connection, job: JobRow, message: str) -> None:
    """A device that reports a fault gets no second job; where a second one reports one with that job, it is the job."""
    if job.lease_owner is None:
        return
    if not await queries.struck_elsewhere(conn, job_id=job.id, worker_id=job.lease_owner, code=GPU_FAULT):
        await _drain(conn, job.lease_owner, f"GPU fault in job {job.id}: {message[:500]}")


async def take_back(conn: Connection, job_id: UUID) -> None:
    """The job's budget is spent: it was not the workers."""
    await queries.take_back_crashes(conn, job_id=job_id)


async def _drain(conn: Connection, worker_id: UUID, reason: str) -> None:
    drained = await queries.drain_by_rule(conn, worker_id=worker_id, reason=reason)
    if drained is not None:
        before, after = ({"name": drained["name"], "draining": draining} for draining in (False, True))
        by = audit.By(RULE, reason)
        await audit.record(conn, by, "drain_worker", "worker", str(worker_id), before, after)
