"""GET /jobs/{id}/events: a page of events, or a stream of server-sent events that resumes where it broke off."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fusion_core.db import jobs
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, QueryParameter
from litestar.response import Stream

from fusion_api.auth import Caller, needs
from fusion_api.job_views import show_event
from fusion_api.jobs import own_job
from fusion_api.services import Services

PAGE = 500
POLL_S = 2.0
KEEPALIVE_S = 15.0
FINAL = frozenset({"completed", "failed", "cancelled"})


@get("/jobs/{job_id:uuid}/events", guards=[needs("read", "train")], summary="Events of a job, or their stream")
async def get_events(
    request: Request[Any, Any, Any],
    job_id: FromPath[UUID],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    after: Annotated[int, QueryParameter(ge=0, description="only events with a greater seq")] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE)] = 100,
    last_event_id: Annotated[int | None, HeaderParameter(name="Last-Event-ID", ge=0)] = None,
) -> Response[Any] | Stream:
    """With `Accept: text/event-stream` a stream: the id of each message is the event's seq."""
    await own_job(services, caller, job_id)
    start = last_event_id if last_event_id is not None else after
    if "text/event-stream" in request.headers.get("accept", ""):
        return Stream(
            _stream(services, job_id, start),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )
    async with services.pool.acquire() as connection:
        rows = await jobs.list_events(connection, job_id, after=start, limit=limit)
    return Response([show_event(row) for row in rows])


async def _stream(services: Services, job_id: UUID, after: int) -> AsyncIterator[bytes]:
    """Every event once, in order; ends after the one that ends the job. No connection is held while waiting."""
    last_sent = time.monotonic()
    yield b": connected\n\n"
    while True:
        async with services.pool.acquire() as connection:
            rows = await jobs.list_events(connection, job_id, after=after, limit=PAGE)
        for row in rows:
            after, last_sent = row["seq"], time.monotonic()
            data = msgspec.json.encode(row["data"]).decode()
            yield f"id: {after}\nevent: {row['type']}\ndata: {data}\n\n".encode()
            if row["type"] in FINAL:
                return
        if len(rows) == PAGE:
            continue
        await services.hub.wait(str(job_id), POLL_S)
        if time.monotonic() - last_sent > KEEPALIVE_S:
            last_sent = time.monotonic()
            yield b": keepalive\n\n"
