"""Jobs of every account, by any state, with why each queued one waits."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_core.states import State
from fusion_http.paging import After, Limit, page
from fusion_http.problem_details import not_found
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from fusion_orchestrator.admin.auth import viewer
from fusion_orchestrator.admin.rows import of_row
from fusion_orchestrator.service import Service

EVENTS_SHOWN = 50
ATTEMPTS_SHOWN = 50
CHECKPOINTS_SHOWN = 20


class AdminJob(msgspec.Struct, frozen=True, kw_only=True):
    """`waits_for` names all that keeps a queued job from being claimed; empty: a worker may take it now."""

    id: UUID
    account_id: UUID
    account_name: str
    type: str
    state: str
    phase: str | None
    pool: str
    priority: int
    waits_for: list[str]
    not_before: datetime
    quarantined_at: datetime | None
    deadline_at: datetime | None
    lease_epoch: int
    lease_owner: UUID | None
    worker_name: str | None
    retries: int
    crashes: int
    losses: int
    last_interruption: str | None
    last_checkpoint_step: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    seq: int
    type: str
    data: dict[str, Any]
    created_at: datetime


class AdminCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    step: int
    turn_end: bool
    state: str
    bytes: int
    created_at: datetime


class AdminJobDetail(AdminJob, frozen=True, kw_only=True):
    """`attempts` are its claims and interruptions, `events` the last of all; both newest first."""

    lease_expires_at: datetime | None
    attempt_id: UUID | None
    claimed_at: datetime | None
    cancel_requested_at: datetime | None
    stop_requested_at: datetime | None
    spec: dict[str, Any]
    error: dict[str, Any] | None
    attempts: list[Event]
    events: list[Event]
    checkpoints: list[AdminCheckpoint]


@get("/jobs", guards=[viewer], summary="Jobs, newest first, with why each waits")
async def list_jobs(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    limit: Limit = 50,
    after: After = None,
    job_state: Annotated[State | None, QueryParameter(name="state")] = None,
    pool: Annotated[str | None, QueryParameter(max_length=64)] = None,
    account: Annotated[UUID | None, QueryParameter()] = None,
) -> Response[list[AdminJob]]:
    rows = queries.admin_jobs(service.pool, state=job_state, pool=pool, account_id=account, after=after, limit=limit)
    return page(request, [of_row(AdminJob, row) async for row in rows], limit)


@get("/jobs/{job_id:uuid}", guards=[viewer], summary="A job with its lease, attempts, last events and checkpoints")
async def get_job(job_id: FromPath[UUID], service: NamedDependency[Service]) -> AdminJobDetail:
    pool = service.pool
    row = await queries.admin_job(pool, job_id=job_id)
    if row is None:
        raise not_found("job")
    attempts = queries.attempts_of_job(pool, job_id=job_id, limit=ATTEMPTS_SHOWN)
    events = queries.last_events(pool, job_id=job_id, limit=EVENTS_SHOWN)
    checkpoints = queries.list_checkpoints(pool, job_id=job_id, after=None, limit=CHECKPOINTS_SHOWN)
    return of_row(
        AdminJobDetail,
        row,
        attempts=[of_row(Event, one) async for one in attempts],
        events=[of_row(Event, one) async for one in events],
        checkpoints=[of_row(AdminCheckpoint, one) async for one in checkpoints],
    )
