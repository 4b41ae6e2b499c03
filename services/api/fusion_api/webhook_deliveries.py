"""What became of an endpoint's events: the log of deliveries, the replay of one, a test event."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fusion_core.db import webhooks
from fusion_core.db.pool import Connection, queries
from fusion_http.paging import After, Limit, page
from fusion_http.problem_details import ProblemError, not_found
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from fusion_api.auth import Caller, needs
from fusion_api.idempotency import Once
from fusion_api.services import Services
from fusion_api.times import Time, shown, shown_or_none
from fusion_api.webhooks import webhook_key

DeliveryStatus = Literal["pending", "delivered", "failed", "cancelled"]


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """`event_id` is the message's `webhook-id`; `response_*` and `error` are those of the last attempt."""

    id: UUID
    event_id: str
    type: str
    status: DeliveryStatus
    attempts: int
    last_attempt_at: Time | None
    next_attempt_at: Time | None
    response_status: int | None
    response_body: str | None
    error: str | None
    created_at: Time


class Message(msgspec.Struct, frozen=True):
    """What is sent, as the receiver gets it."""

    type: str
    timestamp: Time
    data: dict[str, Any]


class DeliveryWithMessage(Delivery, frozen=True, kw_only=True):
    message: Message


def _fields(row: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "event_id": webhooks.message_id(row),
        "type": row["type"],
        "status": row["state"],
        "attempts": row["attempts"],
        "last_attempt_at": shown_or_none(row["attempted_at"]),
        "next_attempt_at": shown_or_none(row["next_attempt_at"]),
        "response_status": row["response_status"],
        "response_body": row["response_snippet"],
        "error": row["error"],
        "created_at": shown(row["created_at"]),
    }


@get("/webhooks/{webhook_id:uuid}/deliveries", guards=[needs("read")], summary="List the deliveries of a webhook")
async def list_deliveries(
    webhook_id: FromPath[UUID],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    status: Annotated[DeliveryStatus | None, QueryParameter(description="only those with this status")] = None,
    limit: Limit = 50,
    after: After = None,
) -> Response[list[Delivery]]:
    """Kept for thirty days after they ended."""
    await _check_endpoint(services, caller, webhook_id)
    rows = queries.list_deliveries(services.pool, webhook_id=webhook_id, state=status, limit=limit, after=after)
    return page(request, [Delivery(**_fields(row)) async for row in rows], limit)


@get(
    "/webhooks/{webhook_id:uuid}/deliveries/{delivery_id:uuid}",
    guards=[needs("read")],
    summary="Get a delivery with its message",
)
async def get_delivery(
    webhook_id: FromPath[UUID],
    delivery_id: FromPath[UUID],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> DeliveryWithMessage:
    await _check_endpoint(services, caller, webhook_id)
    row = await queries.get_delivery(services.pool, webhook_id=webhook_id, delivery_id=delivery_id)
    if row is None:
        raise not_found("delivery")
    message = Message(row["type"], shown(row["occurred_at"]), row["data"])
    return DeliveryWithMessage(**_fields(row), message=message)


@post(
    "/webhooks/{webhook_id:uuid}/deliveries/{delivery_id:uuid}/replay",
    guards=[needs("train")],
    status_code=202,
    summary="Send a delivery again",
    problems=("webhook_disabled",),
)
async def replay_delivery(
    webhook_id: FromPath[UUID],
    delivery_id: FromPath[UUID],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Delivery:
    """At once and, should that fail, on the schedule from its start; with the same `webhook-id` as before."""
    return await _due(
        services, webhook_id, once, lambda conn: webhooks.replay(conn, caller.account_id, webhook_id, delivery_id)
    )


@post(
    "/webhooks/{webhook_id:uuid}/test",
    guards=[needs("train")],
    status_code=202,
    summary="Send a test event",
    problems=("webhook_disabled",),
)
async def send_test(
    webhook_id: FromPath[UUID],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Delivery:
    """A `webhook.test` message, tried once; its delivery says what the receiver answered."""
    return await _due(services, webhook_id, once, lambda conn: webhooks.add_test(conn, caller.account_id, webhook_id))


async def _due(
    services: Services, webhook_id: UUID, once: Once, make: Callable[[Connection], Awaitable[Any]]
) -> Delivery:
    """Make a delivery due and answer it. Raises ProblemError not_found, webhook_disabled or webhooks_off."""
    webhook_key(services.settings)

    async def make_due(connection: Connection) -> UUID:
        try:
            row = await make(connection)
        except webhooks.EndpointDisabledError as disabled:
            raise ProblemError("webhook_disabled", "nothing is sent to it") from disabled
        if row is None:
            raise not_found("webhook or delivery")
        delivery_id: UUID = row["id"]
        return delivery_id

    delivery_id = await once.make(make_due)
    row = await queries.get_delivery(services.pool, webhook_id=webhook_id, delivery_id=delivery_id)
    if row is None:  # replayed after the webhook was deleted
        raise not_found("delivery")
    return Delivery(**_fields(row))


async def _check_endpoint(services: Services, caller: Caller, webhook_id: UUID) -> None:
    """Raises ProblemError not_found."""
    if await queries.get_webhook(services.pool, account_id=caller.account_id, webhook_id=webhook_id) is None:
        raise not_found("webhook")
