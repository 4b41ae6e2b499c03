"""Actions on what is sent and what is stored: replay webhooks, prune now."""

import asyncio
from uuid import UUID

from fusion_core.db import admin
from fusion_core.db.admin import Done
from fusion_http.problem_details import ProblemError
from litestar import Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from fusion_orchestrator.admin.actions import Why, perform
from fusion_orchestrator.admin.auth import Caller, operator
from fusion_orchestrator.prune import PruneReport
from fusion_orchestrator.service import Service

DRY_RUN_DEADLINE_S = 60.0


class Replay(Why, frozen=True, kw_only=True):
    """The endpoint whose failed and cancelled deliveries are sent again."""

    webhook_id: UUID


class Prune(Why, frozen=True, kw_only=True):
    """A dry run only counts."""

    dry_run: bool = False


@post("/webhooks/replay", guards=[operator], status_code=200, summary="Send again what never arrived")
async def replay_webhooks(
    data: JSONBody[Replay], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    """The oldest thousand deliveries of an endpoint that failed or were cancelled, with their ids as before."""
    return await perform(service, caller, data, lambda conn, by: admin.replay_webhooks(conn, by, data.webhook_id))


@post("/storage/prune", guards=[operator], status_code=202, summary="Delete objects that no row names, now")
async def prune(
    data: JSONBody[Prune], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[Done | PruneReport]:
    """Begins beside this request, with 202; a dry run answers its counts with 200 and changes nothing."""
    if data.dry_run:
        return Response(await _dry_run(service), status_code=200)
    done = await perform(service, caller, data, admin.order_prune)
    service.prune_wake.set()
    return Response(done, status_code=202)


async def _dry_run(service: Service) -> PruneReport:
    try:
        async with asyncio.timeout(DRY_RUN_DEADLINE_S):
            return await service.prune_once(dry_run=True)
    except TimeoutError as error:
        detail = "the bucket is too large to look through in a request: use fusion-admin prune --dry-run"
        raise ProblemError("not_ready", detail) from error
