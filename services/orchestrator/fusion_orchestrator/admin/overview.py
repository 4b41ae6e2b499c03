"""The first look: how many of what, what is held back, and what may be wrong."""

from datetime import datetime
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from litestar import get
from litestar.di import NamedDependency

from fusion_orchestrator.admin.auth import viewer
from fusion_orchestrator.admin.rows import of_row
from fusion_orchestrator.figures import SILENT_S
from fusion_orchestrator.service import Service

MAX_PAUSES = 200


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is claimed in this pool, for this account, or for this account in this pool."""

    id: UUID
    pool: str | None
    account_id: UUID | None
    reason: str
    created_at: datetime


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs and workers by state; `silent_workers` neither reported for a minute nor hold a lease.

    `outbox` counts events that wait to become deliveries, `webhooks_due` deliveries that are due and not done.
    """

    jobs: dict[str, int]
    quarantined: int
    expired_leases: int
    workers: dict[str, int]
    silent_workers: int
    cordoned_pools: list[str]
    pauses: list[Pause]
    outbox: int
    webhooks_due: int
    oldest_webhook_due_at: datetime | None
    last_sweep_at: datetime | None


@get("/overview", guards=[viewer], summary="How everything is")
async def get_overview(service: NamedDependency[Service]) -> Overview:
    row = await queries.admin_overview(service.pool, silent_s=SILENT_S)
    pauses = [of_row(Pause, pause) async for pause in queries.list_pauses(service.pool, limit=MAX_PAUSES)]
    backlog = await queries.webhook_backlog(service.pool)
    return of_row(
        Overview,
        row,
        pauses=pauses,
        outbox=await queries.outbox_depth(service.pool),
        webhooks_due=backlog["deliveries"],
        oldest_webhook_due_at=backlog["oldest"],
    )
