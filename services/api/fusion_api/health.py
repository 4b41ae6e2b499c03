"""Liveness and readiness."""

import asyncio

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
    try:
        async with asyncio.timeout(DEADLINE_S):
            await services.pool.fetchval("select 1")
            await services.storage.check()
    except Exception as error:
        log.warning("not_ready", error=repr(error))
        raise ProblemError("not_ready", "a store does not answer") from error
    return {"status": "ready"}
