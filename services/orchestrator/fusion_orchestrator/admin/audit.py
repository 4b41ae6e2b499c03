"""The audit log: who did what to which thing, why, and how it looked before and after."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_http.paging import After, Limit, page
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from fusion_orchestrator.admin.auth import viewer
from fusion_orchestrator.admin.rows import of_row
from fusion_orchestrator.service import Service

TargetType = Literal[
    "job",
    "worker",
    "pool",
    "account",
    "dispatch",
    "webhook",
    "storage",
    "key",
    "operator_token",
    "model",
    "base_model",
    "database",
]
Text = Annotated[str | None, QueryParameter(max_length=200)]


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One action that changed something.

    `actor` is an operator token's name, `cli:` and who ran a command on the stores, or `rule:` and a rule of Fusion's.
    """

    id: UUID
    actor: str
    action: str
    target_type: str
    target: str
    reason: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str | None
    created_at: datetime


@get("/audit", guards=[viewer], summary="The audit log, newest first")
async def list_audit(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    limit: Limit = 50,
    after: After = None,
    actor: Text = None,
    target_type: Annotated[TargetType | None, QueryParameter()] = None,
    target: Text = None,
) -> Response[list[AuditEntry]]:
    rows = queries.list_audit(
        service.pool, actor=actor, target_type=target_type, target=target, after=after, limit=limit
    )
    return page(request, [of_row(AuditEntry, row) async for row in rows], limit)
