"""The customer's side of a job: submit, cancel, stop, resume. Every call names the account."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec

from fusion_core import tracing
from fusion_core.db.endings import end_cancelled, record_event
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobHead, JobRow
from fusion_core.job_spec import INTERNAL_TYPES, SPEC_VERSION, CustomerSpec, IngestSpec
from fusion_core.money import Estimate
from fusion_core.states import DEADLINE_S, INTERNAL_DEADLINE_S, State, Status, rows_of_status


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its creator resolved it: spec, price and plan are frozen from here on.

    `request_sha256` is the hash of the submitted body in canonical form.
    """

    account_id: UUID
    type: str
    spec: CustomerSpec | IngestSpec
    pool: str
    priority: int = 0
    gpu_class: str | None = None
    gpu_count: int | None = None
    dataset_id: UUID | None = None
    base_model_id: UUID | None = None
    source_model_id: UUID | None = None
    labels: Mapping[str, str] = {}
    description: str | None = None
    idempotency_key: str | None = None
    request_sha256: bytes | None = None
    price_version: int | None = None
    estimate: Estimate | None = None
    deadline_s: float | None = None
    """From its creation to its end; the type's own if unset."""


class IdempotencyConflictError(Exception):
    """The account used this idempotency key before, with another body."""


class InputGoneError(Exception):
    """The model or dataset that the job reads was deleted meanwhile."""


class SpendLimitError(Exception):
    """The job would take the account over its limit for the month: what it costs and what is left, in micro-dollars."""

    def __init__(self, cost_microusd: int, left_microusd: int) -> None:
        super().__init__(f"{cost_microusd} of {left_microusd}")
        self.cost_microusd, self.left_microusd = cost_microusd, left_microusd


async def submit_job(conn: Connection, new: NewJob) -> tuple[JobRow, bool]:
    """Create a job, or find the one that this idempotency key made: (job, was it created now).

    Raises IdempotencyConflictError when the key belongs to a request with another body, InputGoneError and
    SpendLimitError.
    """
    async with conn.transaction():
        account = await queries.lock_account(conn, account_id=new.account_id) if new.estimate is not None else None
        await _share_inputs(conn, new)
        record = await queries.insert_job(
            conn,
            account_id=new.account_id,
            type=new.type,
            idempotency_key=new.idempotency_key,
            request_sha256=new.request_sha256,
            spec_version=SPEC_VERSION,
            spec=new.spec,
            base_model_id=new.base_model_id,
            source_model_id=new.source_model_id,
            dataset_id=new.dataset_id,
            price_version=new.price_version,
            estimate=new.estimate,
            pool=new.pool,
            requirements=[],
            priority=new.priority,
            gpu_class=new.gpu_class,
            gpu_count=new.gpu_count,
            labels=dict(new.labels),
            description=new.description,
            deadline_s=new.deadline_s or (INTERNAL_DEADLINE_S if new.type in INTERNAL_TYPES else DEADLINE_S),
        )
        if record is not None:
            if account is not None and account["spend_limit_microusd"] is not None:
                await _check_limit(conn, account, record["reserved_microusd"])
            job = JobRow.of(record)
            await record_event(conn, job, "queued")
            if (traceparent := tracing.current_traceparent()) is not None:
                await queries.keep_traceparent(conn, job_id=job.id, traceparent=traceparent)
            return job, True
    job_of_key = await find_by_key(conn, new.account_id, new.idempotency_key or "", new.request_sha256)
    if job_of_key is None:
        raise RuntimeError("a job with this idempotency key exists and cannot be read")
    return job_of_key, False


async def _share_inputs(conn: Connection, new: NewJob) -> None:
    ready = await queries.share_inputs(conn, source_model_id=new.source_model_id, dataset_id=new.dataset_id)
    gone = [what for what in ("model", "dataset") if not ready[f"{what}_ready"]]
    if gone:
        raise InputGoneError(" and ".join(gone))


async def _check_limit(conn: Connection, account: Any, cost_microusd: int) -> None:
    """Under the account's lock, with the new job among the open ones: a raise takes it back."""
    spend = await queries.spend_of_month(conn, account_id=account["id"])
    left = account["spend_limit_microusd"] - spend["billed_microusd"] - spend["reserved_microusd"] + cost_microusd
    if cost_microusd > left:
        raise SpendLimitError(cost_microusd, max(0, left))


async def find_by_key(
    conn: Connection, account_id: UUID, idempotency_key: str, request_sha256: bytes | None
) -> JobRow | None:
    """The job this key made, or None. Raises IdempotencyConflictError when its body was another."""
    record = await queries.get_job_by_key(conn, account_id=account_id, idempotency_key=idempotency_key)
    if record is None:
        return None
    if record["request_sha256"] != request_sha256:
        raise IdempotencyConflictError(idempotency_key)
    return JobRow.of(record)


async def get_job(conn: Connection, account_id: UUID, job_id: UUID) -> JobRow | None:
    record = await queries.get_job(conn, account_id=account_id, job_id=job_id)
    return JobRow.of(record) if record is not None else None


async def list_jobs(conn: Connection, account_id: UUID, *, limit: int, after: UUID | None = None) -> list[JobHead]:
    """Newest first; `after` is the id of the last job of the page before."""
    records = queries.list_jobs(conn, account_id=account_id, limit=limit, after=after)
    return [JobHead.of(record) async for record in records]


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What jobs of a list have in common; None filters nothing, and every one of `labels` must be there.

    `start_model_id` is what a job starts from: a base model, or a model of the account's own.
    """

    type: str | None = None
    status: Status | None = None
    start_model_id: UUID | None = None
    dataset_id: UUID | None = None
    labels: Mapping[str, str] = {}


async def find_jobs(
    conn: Connection, account_id: UUID, wanted: JobFilter, *, limit: int, after: UUID | None = None
) -> list[JobHead]:
    """`list_jobs` with a filter."""
    rows = rows_of_status(wanted.status) if wanted.status is not None else None
    async with conn.transaction():
        # Which index serves depends on the filters that are given, so each call is planned for itself.
        await conn.execute("set local plan_cache_mode = force_custom_plan")
        records = queries.find_jobs(
            conn,
            account_id=account_id,
            type=wanted.type,
            state=rows.state if rows else None,
            phases=rows.phases if rows else None,
            interrupted=rows.interrupted if rows else None,
            start_model_id=wanted.start_model_id,
            dataset_id=wanted.dataset_id,
            labels=[f"{account_id} {key} {value}" for key, value in wanted.labels.items()] or None,
            limit=limit,
            after=after,
        )
        return [JobHead.of(record) async for record in records]


async def lock_own_job(conn: Connection, account_id: UUID, job_id: UUID) -> JobRow | None:
    """The job under its row's lock, until the transaction ends. None: no such job of this account."""
    record = await queries.lock_job(conn, job_id=job_id)
    if record is None or record["account_id"] != account_id or record["type"] in INTERNAL_TYPES:
        return None
    return JobRow.of(record)


async def cancel_job(conn: Connection, account_id: UUID, job_id: UUID) -> JobRow | None:
    """Legal in every state: a job that has ended is answered as it is. None: no such job of this account."""
    async with conn.transaction():
        job = await lock_own_job(conn, account_id, job_id)
        if job is None:
            return None
        if job.state in (State.QUEUED, State.STOPPED):
            return await end_cancelled(conn, job, await queries.cancel_idle_job(conn, job_id=job.id))
        if job.state == State.RUNNING:
            await queries.request_cancel(conn, job_id=job.id)
        return await get_job(conn, account_id, job_id)


async def stop_job(conn: Connection, account_id: UUID, job_id: UUID) -> JobRow | None:
    """Keep a checkpoint and let the machine go. Legal in every state, like cancel."""
    async with conn.transaction():
        job = await lock_own_job(conn, account_id, job_id)
        if job is None:
            return None
        if job.state == State.QUEUED:
            await queries.stop_queued_job(conn, job_id=job.id)
            await record_event(conn, job, "stopped", {"step": job.last_checkpoint_step})
        elif job.state == State.RUNNING:
            await queries.request_stop(conn, job_id=job.id)
        return await get_job(conn, account_id, job_id)


async def resume_job(conn: Connection, account_id: UUID, job_id: UUID) -> JobRow | None:
    """stopped -> queued, from the newest checkpoint; a job in another state is answered as it is."""
    async with conn.transaction():
        job = await lock_own_job(conn, account_id, job_id)
        if job is None:
            return None
        if job.state == State.STOPPED:
            await queries.resume_job(conn, job_id=job.id)
            await record_event(conn, job, "resumed", {"step": job.last_checkpoint_step})
        return await get_job(conn, account_id, job_id)


async def list_events(conn: Connection, job_id: UUID, *, after: int, limit: int) -> list[Any]:
    """Events with seq > after, oldest first. The caller has checked that the job is the account's."""
    return [event async for event in queries.list_events(conn, job_id=job_id, after=after, limit=limit)]


async def job_with_progress(
    conn: Connection, account_id: UUID, job_id: UUID
) -> tuple[JobRow, dict[str, Any] | None] | None:
    """A job and the newest metrics point of its current attempt."""
    record = await queries.get_job_with_progress(conn, account_id=account_id, job_id=job_id)
    return (JobRow.of(record), record["point"]) if record is not None else None


async def list_metrics(conn: Connection, job_id: UUID, *, since_step: int, limit: int) -> list[dict[str, Any]]:
    records = queries.list_metrics(conn, job_id=job_id, since_step=since_step, limit=limit)
    return [record["point"] async for record in records]


async def sample_metrics(conn: Connection, job_id: UUID, *, since_step: int, points: int) -> list[dict[str, Any]]:
    """At most `points` (4 at least) that keep the curve's extremes: of each range of steps the least and the greatest
    loss, and the first and the last point. So a spike of one step is never lost, whatever the zoom."""
    records = queries.sample_metrics(conn, job_id=job_id, since_step=since_step, buckets=(points - 2) // 2)
    return [record["point"] async for record in records]
