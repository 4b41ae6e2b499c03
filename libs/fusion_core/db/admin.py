"""What the person on call does: each action one transaction with its line in the audit log.

Every action may be repeated. One that finds nothing to change answers things as they are and writes no line.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from fusion_core.db import webhooks
from fusion_core.db.audit import By, record
from fusion_core.db.endings import end_failed, obey_pending, record_event, requeue
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.states import TERMINAL, State

MAX_REPLAYED = 1000
_JOB_FIELDS = (
    "state", "lease_owner", "lease_epoch", "priority", "deadline_at", "not_before", "quarantined_at", "retries",
    "crashes", "losses", "error",
)  # fmt: skip
_DRAIN_FIELDS = ("state", "pool", "drain_requested_at", "drain_reason")


class UnknownTargetError(Exception):
    """There is no such thing to act on; the argument says what."""


class LeaseAliveError(Exception):
    """The job's worker still renews its lease."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """An action's effect. `changed` false: everything was so already, and the audit log has no line of it."""

    action: str
    target_type: str
    target: str
    changed: bool
    before: dict[str, Any] | None
    after: dict[str, Any] | None


async def _conclude(
    conn: Connection, by: By, action: str, target_type: str, target: str, before: Any, after: Any
) -> Done:
    """The action's line in the audit log, inside the action's transaction, unless nothing changed."""
    await record(conn, by, action, target_type, target, before, after)
    return Done(
        action=action, target_type=target_type, target=target, changed=before != after, before=before, after=after
    )


def _view(row: Mapping[str, Any] | None, fields: tuple[str, ...]) -> dict[str, Any] | None:
    return None if row is None else {field: row[field] for field in fields}


# -- jobs ------------------------------------------------------------------------------------------------------------


async def _change_job(
    conn: Connection, by: By, action: str, job_id: UUID, change: Callable[[Any], Awaitable[object]]
) -> Done:
    """`change` gets the locked row of a job that has not ended. Raises UnknownTargetError."""
    async with conn.transaction():
        before = await queries.lock_job(conn, job_id=job_id)
        if before is None:
            raise UnknownTargetError("job")
        if before["state"] not in TERMINAL:
            await change(before)
        after = await queries.lock_job(conn, job_id=job_id)
        return await _conclude(
            conn, by, action, "job", str(job_id), _view(before, _JOB_FIELDS), _view(after, _JOB_FIELDS)
        )


async def requeue_job(conn: Connection, by: By, job_id: UUID) -> Done:
    """Claimable at once: a running job's worker loses its lease, a quarantine ends. Costs the customer no retry.

    A stopped job stays its customer's; a pending cancel or stop comes first. Raises UnknownTargetError.
    """

    async def change(row: Any) -> None:
        job = JobRow.of(row)
        if job.state == State.RUNNING and await obey_pending(conn, job) is None:
            await queries.release_job(conn, job_id=job.id, epoch=job.lease_epoch, attempt_id=job.attempt_id)
            data = {"reason": "operator", "resume_step": job.last_checkpoint_step}
            await record_event(conn, job, "interrupted", data)
        await queries.retry_queued_job(conn, job_id=job.id)

    return await _change_job(conn, by, "requeue", job_id, change)


async def reclaim_job(conn: Connection, by: By, job_id: UUID, *, force: bool) -> Done:
    """What the sweep does with an expired lease, now; `force` takes a living one, too.

    Raises UnknownTargetError, LeaseAliveError.
    """

    async def change(row: Any) -> None:
        job = JobRow.of(row)
        if job.state != State.RUNNING:
            return
        if not force and await queries.lock_expired(conn, job_id=job.id, epoch=job.lease_epoch) is None:
            raise LeaseAliveError(job.id)
        await requeue(conn, job, "lost")

    return await _change_job(conn, by, "reclaim", job_id, change)


async def fail_job(conn: Connection, by: By, job_id: UUID) -> Done:
    """Ends a job that nobody can help; its customer reads the reason and pays nothing. A pending cancel comes first.

    Raises UnknownTargetError.
    """

    async def change(row: Any) -> None:
        job = JobRow.of(row)
        if job.cancel_requested_at is None:
            await end_failed(conn, job, {"code": "failed_by_operator", "message": by.reason, "errors": []})
        else:
            await obey_pending(conn, job)

    return await _change_job(conn, by, "fail", job_id, change)


async def change_priority(conn: Connection, by: By, job_id: UUID, priority: int) -> Done:
    """Higher goes first. Raises UnknownTargetError."""
    return await _change_job(
        conn, by, "priority", job_id, lambda _: queries.set_priority(conn, job_id=job_id, priority=priority)
    )


async def change_deadline(conn: Connection, by: By, job_id: UUID, deadline_at: datetime | None) -> Done:
    """By when the job must have ended; None: whenever. Raises UnknownTargetError."""
    return await _change_job(
        conn, by, "deadline", job_id, lambda _: queries.set_deadline(conn, job_id=job_id, deadline_at=deadline_at)
    )


# -- dispatch --------------------------------------------------------------------------------------------------------


async def drain_worker(conn: Connection, by: By, worker_id: UUID, *, drain: bool) -> Done:
    """Draining, a worker gives its job back at a checkpoint and claims none. Raises UnknownTargetError."""
    async with conn.transaction():
        before = await queries.lock_worker(conn, worker_id=worker_id)
        if before is None:
            raise UnknownTargetError("worker")
        if drain:
            await queries.drain_worker(conn, worker_id=worker_id, reason=by.reason)
        elif before["drain_requested_at"] is not None:
            await queries.undrain_worker(conn, worker_id=worker_id)
        after = await queries.lock_worker(conn, worker_id=worker_id)
        seen = _view(before, _DRAIN_FIELDS), _view(after, _DRAIN_FIELDS)
        return await _conclude(conn, by, "drain" if drain else "undrain", "worker", str(worker_id), *seen)


async def cordon_pool(conn: Connection, by: By, name: str, *, cordon: bool) -> Done:
    """Nothing more is claimed in a cordoned pool; what runs there goes on. Raises UnknownTargetError."""
    async with conn.transaction():
        await queries.declare_known_pool(conn, name=name)
        before = await queries.lock_pool(conn, name=name)
        if before is None:
            raise UnknownTargetError("pool")
        if cordon:
            await queries.cordon_pool(conn, name=name, reason=by.reason)
        else:
            await queries.uncordon_pool(conn, name=name)
        after = await queries.lock_pool(conn, name=name)
        return await _conclude(conn, by, "cordon" if cordon else "uncordon", "pool", name, dict(before), dict(after))


async def pause_dispatch(conn: Connection, by: By, *, pool: str | None, account_id: UUID | None, pause: bool) -> Done:
    """Nothing is claimed in this pool, for this account, or for this account in this pool. At least one is given.

    Resuming ends the pause of just this pair. Raises UnknownTargetError.
    """
    where = {"pool": pool, "account_id": account_id}
    async with conn.transaction():
        await queries.lock_dispatch(conn)
        if account_id is not None and await queries.get_account(conn, account_id=account_id) is None:
            raise UnknownTargetError("account")
        before = await queries.find_pause(conn, **where)
        if pause and before is None:
            await queries.pause_dispatch(conn, **where, reason=by.reason)
        elif not pause:
            await queries.resume_dispatch(conn, **where)
        after = await queries.find_pause(conn, **where)
        target = " ".join(f"{name}={value}" for name, value in where.items() if value is not None)
        seen = (None if row is None else dict(row) for row in (before, after))
        return await _conclude(conn, by, "pause" if pause else "resume", "dispatch", target, *seen)


# -- webhooks and storage --------------------------------------------------------------------------------------------


async def replay_webhooks(conn: Connection, by: By, webhook_id: UUID) -> Done:
    """Send again what never arrived at an endpoint, MAX_REPLAYED at a time.

    Raises UnknownTargetError, and EndpointDisabledError: its customer enables it.
    """
    async with conn.transaction():
        endpoint = await queries.lock_webhook_of_any(conn, webhook_id=webhook_id)
        if endpoint is None:
            raise UnknownTargetError("webhook")
        rows = queries.undelivered(conn, webhook_id=webhook_id, limit=MAX_REPLAYED)
        lost = [row["id"] async for row in rows]
        for delivery_id in lost:
            await webhooks.replay(conn, endpoint["account_id"], webhook_id, delivery_id)
        before, after = {"undelivered": len(lost)}, {"undelivered": 0}
        return await _conclude(conn, by, "replay", "webhook", str(webhook_id), before, after)


async def restore_model(conn: Connection, by: By, model_id: UUID, *, days: int) -> Any:
    """Undo a deletion of the last `days`, while the files are there; the row. Raises UnknownTargetError."""
    async with conn.transaction():
        row = await queries.restore_model(conn, model_id=model_id, days=days)
        if row is None:
            raise UnknownTargetError("model")
        before, after = ({"status": status} for status in ("deleted", "ready"))
        await _conclude(conn, by, "restore_model", "model", str(model_id), before, after)
        return row


async def order_retention(conn: Connection, by: By, due: Mapping[str, int]) -> Done:
    """The audit log's line of a retention that the caller begins once this is committed; `due` says how many rows."""
    async with conn.transaction():
        before, after = ({"ordered": ordered, "due": dict(due)} for ordered in (False, True))
        return await _conclude(conn, by, "retention", "storage", "rows", before, after)


async def order_prune(conn: Connection, by: By) -> Done:
    """The audit log's line of a pruning that the caller begins once this is committed."""
    async with conn.transaction():
        return await _conclude(conn, by, "prune", "storage", "bucket", {"ordered": False}, {"ordered": True})
