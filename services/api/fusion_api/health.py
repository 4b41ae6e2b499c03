"""Liveness and readiness."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog
from fusion_http.problem_details import ProblemError
from litestar import get
from litestar.di import NamedDependency

from fusion_api.services import Services

log = structlog.get_logger()
DEADLINE_S = 5.0


@get("/health", summary="Is the process alive?")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@get("/ready", summary="Can it serve? Postgres and S3 answer", problems=("not_ready",))
async def ready(services: NamedDependency[Services]) -> dict[str, str]:
    async with _answering():
        await services.pool.fetchval("select 1")
        await services.storage.check()
    return {"status": "ready"}


@get("/ready/postgres", summary="Can it serve all that needs no file? Postgres answers", problems=("not_ready",))
async def ready_without_files(services: NamedDependency[Services]) -> dict[str, str]:
    """For load balancers: without S3 jobs and events are served all the same, by no replica better than by this."""
    async with _answering():
        await services.pool.fetchval("select 1")
    return {"status": "ready"}


@contextlib.asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    """Raises ProblemError not_ready for what fails in the block, or takes too long."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield
    except Exception as error:
        log.warning("not_ready", error=repr(error))
        raise ProblemError("not_ready", "a store does not answer") from error
