"""What waits to be sent, and what is stored."""

from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_http.paging import After, Limit, page
from litestar import Request, Response, get
from litestar.di import NamedDependency

from fusion_orchestrator.admin.auth import viewer
from fusion_orchestrator.admin.rows import of_row
from fusion_orchestrator.service import Service


class WebhookBacklog(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint with deliveries that wait or have failed. Of its URL the host alone: the rest may hold a secret."""

    id: UUID
    account_id: UUID
    host: str
    enabled: bool
    disabled_reason: str | None
    failing_since: datetime | None
    pending: int
    failed: int
    oldest_due_at: datetime | None


class StoredKind(msgspec.Struct, frozen=True, kw_only=True):
    """Counted from rows. An upload's size is what its customer announced."""

    kind: str
    items: int
    bytes: int


@get("/webhooks", guards=[viewer], summary="Webhook endpoints that are behind")
async def list_webhooks(
    request: Request[Any, Any, Any], service: NamedDependency[Service], limit: Limit = 50, after: After = None
) -> Response[list[WebhookBacklog]]:
    rows = queries.webhook_endpoints_behind(service.pool, after=after, limit=limit)
    behind = [of_row(WebhookBacklog, row, host=urlsplit(row["url"]).hostname or "") async for row in rows]
    return page(request, behind, limit)


@get("/storage", guards=[viewer], summary="Bytes and counts by kind")
async def get_storage(service: NamedDependency[Service]) -> list[StoredKind]:
    return [of_row(StoredKind, row) async for row in queries.storage_by_kind(service.pool)]
