"""How a job ends or goes back to the queue: the state, the event, the webhook's row and the ledger as one transaction.

Every function here runs inside its caller's transaction, with the job's row locked.
"""

from typing import Any
from uuid import UUID

import msgspec

from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.job_spec import read_customer_spec
from fusion_core.money import Estimate, bill_cancelled
from fusion_core.states import LOSS_LIMIT, State

# Events that customers can subscribe to; each gets an outbox row in the transaction that wrote the event.
WEBHOOK_TOPICS = {
    "claimed": "job.started",
    "checkpoint": "job.checkpoint",
    "completed": "job.completed",
    "failed": "job.failed",
    "cancelled": "job.cancelled",
    "stopped": "job.stopped",
}
INTERNAL_TOPICS = {
    "ingest": {"completed": "dataset.ready", "failed": "dataset.failed", "cancelled": "dataset.failed"},
    "sample": {},
}
# Counted by the orchestrator that empties the outbox, so they get a row even where nobody can subscribe to them.
COUNTED = frozenset({"claimed", "interrupted", "quarantined", "completed", "failed", "cancelled"})


def topic_of(job_type: str, event_type: str) -> str | None:
    """Under which name an event goes into the outbox; None: nobody reads it there."""
    topic = INTERNAL_TOPICS.get(job_type, WEBHOOK_TOPICS).get(event_type)
    return topic or (f"internal.{event_type}" if event_type in COUNTED else None)


async def record_event(conn: Connection, job: JobRow, event_type: str, data: dict[str, Any] | None = None) -> int:
    """Append one of the platform's own events, and its outbox row where customers subscribe to it or it is counted."""
    seq: int = await queries.append_event(conn, job_id=job.id, type=event_type, data=data or {})
    topic = topic_of(job.type, event_type)
    if topic is not None:
        await queries.insert_outbox(conn, job_id=job.id, seq=seq, topic=topic)
    return seq


async def write_ledger(conn: Connection, job: JobRow, bill: Estimate | None, tokens: int) -> None:
    """One line a priced job, at its terminal state, where `bill` None owes nothing; internal jobs have no price."""
    if job.price_version is None:
        return
    await queries.insert_ledger(
        conn,
        account_id=job.account_id,
        job_id=job.id,
        amount_microusd=bill.total_microusd if bill else 0,
        line_items=list(bill.line_items) if bill else [],
        tokens=tokens,
        price_version=job.price_version,
    )


def tokens_up_to(job: JobRow, step: int) -> int:
    """What training up to `step` is billed for: a job that went on from another's checkpoint trains only the rest."""
    return max(0, step - job.start_step) * read_customer_spec(job.type, job.spec).tokens_per_step


def owed_if_cancelled(job: JobRow) -> Estimate:
    """Growth if it was done, and the tokens up to the last committed checkpoint, at the frozen prices."""
    tokens = tokens_up_to(job, job.last_checkpoint_step)
    return bill_cancelled(frozen_estimate(job), growth_done=job.grown_at is not None, tokens_committed=tokens)


def frozen_estimate(job: JobRow) -> Estimate:
    return msgspec.convert(job.estimate, Estimate)


async def end_cancelled(conn: Connection, job: JobRow, cancelled: Any) -> JobRow:
    """The rest of a cancellation: growth if it was done, and the tokens up to the last committed checkpoint."""
    error = None
    if job.price_version is not None:
        await write_ledger(conn, job, owed_if_cancelled(job), tokens_up_to(job, job.last_checkpoint_step))
    elif job.dataset_id is not None:
        error = {"code": "cancelled", "message": "The reading of this dataset was cancelled. Register it again."}
        await queries.dataset_failed(conn, dataset_id=job.dataset_id, error=error)
    await record_event(conn, job, "cancelled", error)
    return JobRow.of(cancelled)


async def end_failed(conn: Connection, job: JobRow, error: dict[str, Any]) -> JobRow:
    """A job that has not ended -> failed, under its row's lock: it pays nothing; an ingest fails its dataset."""
    if job.state == State.RUNNING:
        fence = {"job_id": job.id, "epoch": job.lease_epoch, "attempt_id": job.attempt_id}
        failed = await queries.fail_job(conn, **fence, error=error)
    else:
        failed = await queries.fail_idle_job(conn, job_id=job.id, error=error)
    if job.type == "ingest":
        await queries.dataset_failed(conn, dataset_id=job.dataset_id, error=error)
    await write_ledger(conn, job, None, 0)
    await record_event(conn, job, "failed", error)
    return JobRow.of(failed)


async def obey_pending(conn: Connection, job: JobRow) -> JobRow | None:
    """Honour a pending cancel first, then a pending stop; None where neither is pending."""
    fence: dict[str, UUID | int | None] = {
        "job_id": job.id,
        "epoch": job.lease_epoch,
        "attempt_id": job.attempt_id,
    }
    if job.cancel_requested_at is not None:
        return await end_cancelled(conn, job, await queries.cancel_running_job(conn, **fence))
    if job.stop_requested_at is not None:
        stopped = await queries.stop_running_job(conn, **fence)
        await record_event(conn, job, "stopped", {"step": job.last_checkpoint_step})
        return JobRow.of(stopped)
    return None


async def requeue(
    conn: Connection, job: JobRow, interruption: str, detail: dict[str, Any] | None = None, *, outage: bool = False
) -> JobRow:
    """running -> queued after a lost worker or a crash, unless a cancel or a stop is pending.

    A crash of an `outage` spends nothing of the job's budget.
    """
    ended = await obey_pending(conn, job)
    if ended is not None:
        return ended
    queued = await queries.requeue_interrupted_job(
        conn,
        job_id=job.id,
        epoch=job.lease_epoch,
        attempt_id=job.attempt_id,
        interruption=interruption,
        outage=outage,
        loss_limit=LOSS_LIMIT,
    )
    data = {"reason": interruption, "resume_step": job.last_checkpoint_step, "retries": queued["retries"]}
    await record_event(conn, job, "interrupted", data | (detail or {}))
    if queued["quarantined_at"] is not None:
        await record_event(conn, job, "quarantined", {"losses": queued["losses"]})
    return JobRow.of(queued)
