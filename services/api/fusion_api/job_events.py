"""GET /jobs/{id}/events: a page of events, or a stream of server-sent events that resumes where it broke off."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import msgspec
import structlog
from fusion_core.db import jobs
from fusion_core.db.rows import JobRow
from fusion_core.states import TERMINAL
from fusion_http.problem_details import STORE_DOWN, ProblemError
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, QueryParameter
from litestar.response import Stream

from fusion_api.auth import Caller, is_live, needs
from fusion_api.examples import EVENTS
from fusion_api.job_views import Event, show_event
from fusion_api.jobs import own_job
from fusion_api.services import Services

log = structlog.get_logger()
PAGE = 500
MAX_SEQ = 2**63 - 1
KEEPALIVE_S = 15.0
FINAL = frozenset({"completed", "failed", "cancelled"})


@get(
    "/jobs/{job_id:uuid}/events",
    guards=[needs("read", "train")],
    summary="Events of a job, or their stream",
    answer=EVENTS,
    problems=("history_gone",),
)
async def get_events(
    request: Request[Any, Any, Any],
    job_id: FromPath[UUID],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    after: Annotated[int, QueryParameter(ge=0, le=MAX_SEQ, description="only events with a greater seq")] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE)] = 100,
    last_event_id: Annotated[int | None, HeaderParameter(name="Last-Event-ID", ge=0, le=MAX_SEQ)] = None,
) -> Response[list[Event]] | Stream:
    """With `Accept: text/event-stream` a stream: the id of each message is the event's seq."""
    check_history(await own_job(services, caller, job_id))
    start = last_event_id if last_event_id is not None else after
    if "text/event-stream" in request.headers.get("accept", ""):
        return Stream(
            _stream(request, services, caller, job_id, start),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )
    async with services.pool.acquire() as connection:
        rows = await jobs.list_events(connection, job_id, after=start, limit=limit)
    return Response([show_event(row) for row in rows])


def check_history(job: JobRow) -> None:
    """Raises ProblemError where retention has taken the job's events and metrics."""
    if job.history_deleted_at is not None:
        raise ProblemError("history_gone", "the events and metrics of this job were kept for their time and are gone")


async def _stream(
    request: Request[Any, Any, Any], services: Services, caller: Caller, job_id: UUID, after: int
) -> AsyncIterator[bytes]:
    """Every event once, in order; ends with the job, when the key is revoked, or with this process.

    Holds no connection to Postgres while it waits. Clients come again with Last-Event-ID.
    """
    last_sent = last_checked = time.monotonic()
    yield b": connected\n\n"
    with services.hub.bell(job_id, caller.key_id) as bell:
        while True:
            bell.clear()  # before looking: what comes while we look rings again
            if services.hub.is_dead(caller.key_id):
                return
            try:
                if time.monotonic() - last_checked > KEEPALIVE_S:
                    last_checked = time.monotonic()
                    if not await is_live(request):
                        return
                ended, rows = await services.hub.read_once(
                    job_id, after, partial(_read, services, caller, job_id, after)
                )
            except STORE_DOWN as error:
                log.warning("stream_broken_off", job_id=str(job_id), error=repr(error))
                return
            for row in rows:
                after, last_sent = row["seq"], time.monotonic()
                data = msgspec.json.encode(row["data"]).decode()
                yield f"id: {after}\nevent: {row['type']}\ndata: {data}\n\n".encode()
                if row["type"] in FINAL:
                    return
            if len(rows) == PAGE:
                continue
            if ended or services.hub.closing:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(bell.wait(), KEEPALIVE_S)
            if time.monotonic() - last_sent >= KEEPALIVE_S:
                last_sent = time.monotonic()
                yield b": keepalive\n\n"


async def _read(services: Services, caller: Caller, job_id: UUID, after: int) -> tuple[bool, list[Any]]:
    """(has the job ended, its next events). The job is read first: if it has ended, no event can follow these."""
    async with services.pool.acquire() as connection:
        job = await jobs.get_job(connection, caller.account_id, job_id)
        rows = await jobs.list_events(connection, job_id, after=after, limit=PAGE)
    return job is None or job.state in TERMINAL, rows
