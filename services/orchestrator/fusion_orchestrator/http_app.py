"""What operators and Kubernetes ask of a replica: /health, /ready, /metrics and /demand, on a port of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from litestar import Litestar, Response, get
from litestar.datastructures import State
from litestar.params import FromPath

from fusion_orchestrator.admin.server import serving_admin
from fusion_orchestrator.doorbell import DATABASE_AWAY
from fusion_orchestrator.service import Service, running
from fusion_orchestrator.settings import OrchestratorSettings

ANSWER_DEADLINE_S = 10.0
_READY_DEADLINE_S = 2.0

log = structlog.get_logger()


class Answer(msgspec.Struct, frozen=True):
    """`status` is ok or what is wrong."""

    status: str


class Demand(msgspec.Struct, frozen=True):
    """Of a pool: jobs that run, and those that could start at once if there were a worker."""

    demand: int


@get("/health", summary="Alive: every loop runs")
async def health(state: State) -> Response[Answer]:
    service: Service = state.service
    if dead := service.dead_loops():
        return Response(Answer(f"loops ended: {', '.join(dead)}"), status_code=500)
    return Response(Answer("ok"))


@get("/ready", summary="Ready: Postgres answers")
async def ready(state: State) -> Response[Answer]:
    service: Service = state.service
    try:
        async with asyncio.timeout(_READY_DEADLINE_S), service.pool.acquire() as conn:
            await conn.execute("select 1")
    except DATABASE_AWAY as error:
        return Response(Answer(f"Postgres does not answer: {type(error).__name__}"), status_code=503)
    return Response(Answer("ok"))


@get("/metrics", summary="Figures for Prometheus", media_type="text/plain; version=0.0.4; charset=utf-8")
async def metrics(state: State) -> bytes:
    service: Service = state.service
    try:
        await service.figures.refresh()
    except DATABASE_AWAY as error:
        log.warning("metrics_without_database", error=repr(error))
    return service.metrics.text()


@get("/demand/{pool:str}", summary="Slots that a pool wants, for autoscalers")
async def demand(state: State, pool: FromPath[str]) -> Response[Demand | Answer]:
    """A pool that nobody has heard of wants nothing. Without Postgres 503, so that an autoscaler changes nothing."""
    service: Service = state.service
    try:
        await service.figures.refresh()
    except DATABASE_AWAY as error:
        return Response(Answer(f"Postgres does not answer: {type(error).__name__}"), status_code=503)
    return Response(Demand(service.figures.demand.get(pool, 0)))


def create_app(settings: OrchestratorSettings) -> Litestar:
    """The app whose lifespan is the service: the loops run while it serves."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with running(settings) as service, serving_admin(service):
            app.state.service = service
            log.info("started", host=settings.host, port=settings.port)
            yield
        log.info("stopped")

    handlers: list[Any] = [health, ready, metrics, demand]
    return Litestar(handlers, lifespan=[lifespan], openapi_config=None, logging_config=None)
