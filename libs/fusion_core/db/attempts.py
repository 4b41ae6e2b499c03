"""The worker's side of a job. Every write is fenced by state, lease epoch and attempt id; a zombie gets LeaseLostError.

The protocol and why it is safe: docs/walk.md and design section "Lease and fencing".
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import msgspec

from fusion_core.db import failing_workers
from fusion_core.db.endings import (
    WEBHOOK_TOPICS,
    end_failed,
    frozen_estimate,
    obey_pending,
    record_event,
    requeue,
    tokens_up_to,
    topic_of,
)
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.job_spec import SPEC_VERSION, read_customer_spec
from fusion_core.states import CRASH_BUDGET, State
from fusion_core.trainer_protocol import FileEntry, Manifest

STORAGE_UNAVAILABLE = "storage_unavailable"
NODE_LOST = "node_lost"


class LeaseLostError(Exception):
    """Another attempt has this job, or it has ended: kill the trainer, upload nothing more, drop the work."""


class CancelPendingError(Exception):
    """Completion was refused because the customer has cancelled: call `obey`."""


class Attempt(msgspec.Struct, frozen=True):
    """One claim of a job."""

    job_id: UUID
    epoch: int
    attempt_id: UUID

    @property
    def fence(self) -> dict[str, UUID | int]:
        return {"job_id": self.job_id, "epoch": self.epoch, "attempt_id": self.attempt_id}


class Claimer(msgspec.Struct, frozen=True, kw_only=True):
    """Who claims: a registered worker, its pool and what it can run."""

    worker_id: UUID
    pool: str
    spec_version: int = SPEC_VERSION
    capabilities: tuple[str, ...] = ()


class Renewal(msgspec.Struct, frozen=True):
    """The reply to a heartbeat."""

    cancel: bool
    stop: bool


class WorkerEvent(msgspec.Struct, frozen=True):
    """An event of the trainer with its local number, its public type and data."""

    number: int
    type: str
    data: dict[str, Any]


class NewModel(msgspec.Struct, frozen=True, kw_only=True):
    """The export of a finished job. `name` gets the next free version of the account."""

    name: str
    params: int
    config: dict[str, Any]
    s3_prefix: str
    manifest: Manifest


class NewShard(msgspec.Struct, frozen=True, kw_only=True):
    split: str
    ordinal: int
    s3_key: str
    rows: int
    file: FileEntry


# -- taking and keeping the lease ------------------------------------------------------------------------------------


async def claim(
    conn: Connection, claimer: Claimer, job_id: UUID, epoch: int, attempt_id: UUID, ttl_s: float
) -> JobRow | None:
    """Take a queued job at `epoch` (it runs at epoch+1), or get it again if this attempt already has it.

    None: it is no longer claimable, which for a stale or repeated ring is the normal answer.
    """
    record = await queries.claim_job(
        conn, **_claim_of(claimer), job_id=job_id, epoch=epoch, attempt_id=attempt_id, ttl_s=ttl_s
    )
    if record is None:
        record = await queries.get_claim(conn, job_id=job_id, attempt_id=attempt_id)
    return JobRow.of(record) if record is not None else None


async def claim_next(conn: Connection, claimer: Claimer, attempt_id: UUID, ttl_s: float) -> JobRow | None:
    """Claim whichever job is served next, without a doorbell, passing over those that others are claiming.

    None: there is nothing for this worker to do.
    """
    record = await queries.claim_job(
        conn, **_claim_of(claimer), job_id=None, epoch=None, attempt_id=attempt_id, ttl_s=ttl_s
    )
    return JobRow.of(record) if record is not None else None


async def held_by(conn: Connection, attempt_ids: Sequence[UUID]) -> JobRow | None:
    """The job that one of these claims took, of a worker that was not told."""
    record = await queries.get_held(conn, attempt_ids=attempt_ids)
    return JobRow.of(record) if record is not None else None


def _claim_of(claimer: Claimer) -> dict[str, Any]:
    return {
        "worker_id": claimer.worker_id,
        "pool": claimer.pool,
        "spec_version": claimer.spec_version,
        "capabilities": list(claimer.capabilities),
        "topic": topic_of("train", "claimed"),
        "internal_topic": topic_of("ingest", "claimed"),
    }


async def renew(conn: Connection, attempt: Attempt, ttl_s: float) -> Renewal:
    """Extend the lease, even an expired one that nobody has taken. Raises LeaseLostError."""
    reply = await queries.renew_lease(conn, **attempt.fence, ttl_s=ttl_s)
    if reply is None:
        raise LeaseLostError(attempt)
    return Renewal(cancel=reply["cancel"], stop=reply["stop"])


@asynccontextmanager
async def fenced(conn: Connection, attempt: Attempt) -> AsyncIterator[JobRow]:
    """A transaction that holds the job's row for this attempt. Raises LeaseLostError."""
    async with conn.transaction():
        record = await queries.lock_attempt(conn, **attempt.fence)
        if record is None:
            raise LeaseLostError(attempt)
        yield JobRow.of(record)


# -- progress --------------------------------------------------------------------------------------------------------


async def append_events(
    conn: Connection, attempt: Attempt, events: Sequence[WorkerEvent], phase: str | None = None
) -> int:
    """Append the events not yet recorded, number them, set the phase; answers how many were new.

    Repeating a batch whose answer was lost repeats nothing. Raises LeaseLostError.
    """
    new: int | None = await queries.append_attempt_events(
        conn,
        **attempt.fence,
        numbers=[event.number for event in events],
        types=[event.type for event in events],
        payloads=[msgspec.json.encode(event.data).decode() for event in events],
        phase=phase,
    )
    if new is None:
        raise LeaseLostError(attempt)
    return new


# -- endings ---------------------------------------------------------------------------------------------------------


async def completed_by(conn: Connection, attempt: Attempt) -> JobRow | None:
    """The job, if it was this very attempt that completed it: then a repeated completion is success."""
    record = await queries.lock_job(conn, job_id=attempt.job_id)
    if record is None or record["state"] != State.COMPLETED or record["attempt_id"] != attempt.attempt_id:
        return None
    return JobRow.of(record)


async def complete_training(
    conn: Connection, attempt: Attempt, model: NewModel, result: dict[str, Any], claimed: JobRow | None = None
) -> JobRow:
    """The model row, the completion, the final event and the ledger entry, as one statement.

    `claimed` is the job as the claim answered it, whose price was frozen when it was created; without it, it is read.
    Repeatable: completed by this attempt is success. Raises LeaseLostError, or CancelPendingError.
    """
    job = claimed
    if job is None:
        held = await queries.get_claim(conn, job_id=attempt.job_id, attempt_id=attempt.attempt_id)
        job = JobRow.of(held) if held is not None else None
    if job is not None:
        estimate = frozen_estimate(job)
        cost = {"cost_usd": estimate.total_microusd / 1_000_000}
        completed = await queries.complete_training(
            conn,
            **attempt.fence,
            name=model.name,
            params=model.params,
            config=model.config,
            s3_prefix=model.s3_prefix,
            manifest=model.manifest,
            result=result | cost,
            cost=cost,
            topic=WEBHOOK_TOPICS["completed"],
            amount_microusd=estimate.total_microusd,
            line_items=list(estimate.line_items),
            tokens=tokens_up_to(job, read_customer_spec(job.type, job.spec).total_steps),
        )
        if completed is not None:
            return JobRow.of(completed)
    async with conn.transaction():
        record = await queries.lock_attempt(conn, **attempt.fence)
        if record is not None and record["cancel_requested_at"] is not None:
            raise CancelPendingError(attempt)
        done = await completed_by(conn, attempt)
        if done is None:
            raise LeaseLostError(attempt)
        return done


async def complete_ingest(
    conn: Connection,
    attempt: Attempt,
    shards: Sequence[NewShard],
    rows: int,
    heldout_rows: int,
    report: dict[str, Any] | None = None,
) -> JobRow:
    """Shards, report, `ready` and the event as one transaction. Repeatable.

    Raises LeaseLostError, or CancelPendingError.
    """
    try:
        async with fenced(conn, attempt) as job:
            if job.cancel_requested_at is not None:
                raise CancelPendingError(attempt)
            for shard in shards:
                await queries.insert_shard(
                    conn,
                    dataset_id=job.dataset_id,
                    split=shard.split,
                    ordinal=shard.ordinal,
                    s3_key=shard.s3_key,
                    bytes=shard.file.size,
                    rows=shard.rows,
                    sha256=shard.file.sha256,
                )
            await queries.dataset_ready(
                conn,
                dataset_id=job.dataset_id,
                shard_count=len(shards),
                bytes=sum(shard.file.size for shard in shards),
                rows=rows,
                heldout_rows=heldout_rows,
            )
            if report is not None:
                await queries.insert_dataset_report(conn, dataset_id=job.dataset_id, report=report)
            completed = await queries.complete_job(conn, **attempt.fence, output_model_id=None, result=None)
            await record_event(conn, job, "completed", {"dataset_id": str(job.dataset_id)})
            return JobRow.of(completed)
    except LeaseLostError:
        done = await completed_by(conn, attempt)
        if done is None:
            raise
        return done


async def fail(
    conn: Connection,
    attempt: Attempt,
    code: str,
    message: str,
    errors: Sequence[Any] = (),
    report: dict[str, Any] | None = None,
) -> JobRow:
    """An error that no retry can mend; `report` is that of a dataset's files. A pending cancel is honoured first.

    Raises LeaseLostError.
    """
    async with fenced(conn, attempt) as job:
        if job.cancel_requested_at is not None:
            cancelled = await obey_pending(conn, job)
            if cancelled is not None:
                return cancelled
        if report is not None:
            await queries.insert_dataset_report(conn, dataset_id=job.dataset_id, report=report)
        return await end_failed(conn, job, {"code": code, "message": message, "errors": list(errors)})


async def crash(conn: Connection, attempt: Attempt, code: str, message: str) -> JobRow:
    """An attempt that ended without an outcome: requeued, until the budget of crashes without progress is spent.

    An outage of S3 spends no budget: every job that it met would fail. The job's deadline bounds it. A node lost
    from a group counts as a worker lost does.

    Raises LeaseLostError.
    """
    async with fenced(conn, attempt) as job:
        pending = await obey_pending(conn, job)
        if pending is not None:
            return pending
        if code == STORAGE_UNAVAILABLE:
            return await requeue(conn, job, "crash", {"code": code, "message": message}, outage=True)
        if code == NODE_LOST:
            return await requeue(conn, job, "lost", {"code": code, "message": message})
        if code == failing_workers.GPU_FAULT:
            await failing_workers.blame_gpu(conn, job, message)
        if job.crashes + 1 >= CRASH_BUDGET:
            await failing_workers.take_back(conn, job.id)
            error = {
                "code": "retry_budget_spent",
                "message": f"The job crashed {job.crashes + 1} times in a row without progress. Last: {message}",
                "errors": [{"code": code, "detail": message}],
            }
            return await end_failed(conn, job, error)
        await failing_workers.blame(conn, job, code)
        return await requeue(conn, job, "crash", {"code": code, "message": message})


async def release(conn: Connection, attempt: Attempt) -> JobRow:
    """Drain: give the job back at its last committed checkpoint; costs no retry. Raises LeaseLostError."""
    async with fenced(conn, attempt) as job:
        pending = await obey_pending(conn, job)
        if pending is not None:
            return pending
        released = JobRow.of(await queries.release_job(conn, **attempt.fence))
        await record_event(conn, job, "interrupted", {"reason": "drain", "resume_step": job.last_checkpoint_step})
        return released


async def obey(conn: Connection, attempt: Attempt) -> JobRow:
    """The trainer has stopped as asked: cancelled or stopped; if neither is pending any more, released.

    Raises LeaseLostError.
    """
    return await release(conn, attempt)
