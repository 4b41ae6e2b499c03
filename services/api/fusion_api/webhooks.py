"""Webhook endpoints: where a customer wants events sent. A secret is shown when it is made and never again."""

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fusion_core.db import webhooks
from fusion_core.db.pool import Connection, queries
from fusion_core.webhook_targets import MAX_URL_LENGTH, RefusedTargetError
from fusion_core.webhooks import EVENT_TYPES, SECRET_OVERLAP_S, EventType, endpoint_secret, shown_secret
from fusion_http.paging import After, Limit, page
from fusion_http.problem_details import FieldError, ProblemError, invalid, not_found
from litestar import Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.idempotency import Once
from fusion_api.services import Services
from fusion_api.settings import ApiSettings
from fusion_api.times import Time, shown, shown_or_none

WantedType = Literal[EventType, "training.completed", "training.failed"]
Url = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_URL_LENGTH)]
EventTypes = Annotated[list[WantedType], msgspec.Meta(min_length=1, max_length=20)]
Description = Annotated[str, msgspec.Meta(max_length=500)]


class CreateWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without `event_types` the endpoint gets every event."""

    url: Url
    event_types: EventTypes | None = None
    description: Description = ""


class ChangeWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out, or null, stays as it is."""

    url: Url | None = None
    event_types: EventTypes | None = None
    description: Description | None = None
    enabled: bool | None = None


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """`failing_since`: the first failure after the last success. `gave_up_at`: a delivery ran out of attempts since."""

    id: UUID
    url: str
    event_types: list[str]
    description: str
    enabled: bool
    disabled_reason: str | None
    failing_since: Time | None
    gave_up_at: Time | None
    previous_secret_until: Time | None
    created_at: Time


class WebhookWithSecret(Webhook, frozen=True, kw_only=True):
    """`secret` is shown once: repeating the request with its Idempotency-Key answers null in its place."""

    secret: str | None


def _fields(row: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "url": row["url"],
        "event_types": row["event_types"],
        "description": row["description"],
        "enabled": row["enabled"],
        "disabled_reason": row["disabled_reason"],
        "failing_since": shown_or_none(row["failing_since"]),
        "gave_up_at": shown_or_none(row["gave_up_at"]),
        "previous_secret_until": shown_or_none(row["previous_secret_until"]),
        "created_at": shown(row["created_at"]),
    }


def webhook_key(settings: ApiSettings) -> str:
    """Raises ProblemError webhooks_off."""
    if settings.webhook_key is None:
        raise ProblemError("webhooks_off", "this server sends no webhooks")
    return settings.webhook_key


def _check_url(settings: ApiSettings, url: str | None) -> None:
    """What can be known before the first delivery. Raises ProblemError validation_failed."""
    try:
        if url is not None:
            settings.webhook_policy().check_url(url)
    except RefusedTargetError as refused:
        raise invalid([FieldError("/url", str(refused))]) from refused


@get("/webhooks", guards=[needs("read")], summary="List webhooks")
async def list_webhooks(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    limit: Limit = 50,
    after: After = None,
) -> Response[list[Webhook]]:
    rows = queries.list_webhooks(services.pool, account_id=caller.account_id, limit=limit, after=after)
    return page(request, [Webhook(**_fields(row)) async for row in rows], limit)


@post(
    "/webhooks",
    guards=[needs("train")],
    status_code=201,
    summary="Create a webhook",
    problems=("too_many_webhooks", "webhooks_off"),
    example={"url": "https://example.com/fusion", "event_types": ["job.completed", "job.failed"]},
)
async def create_webhook(
    data: JSONBody[CreateWebhook],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> WebhookWithSecret:
    """The answer has the secret that signs its messages, this once."""
    key = webhook_key(services.settings)
    _check_url(services.settings, data.url)

    async def insert(connection: Connection) -> UUID:
        wanted = data.event_types or EVENT_TYPES
        try:
            row = await webhooks.create_endpoint(
                connection,
                caller.account_id,
                url=data.url,
                event_types=list(dict.fromkeys(wanted)),
                description=data.description,
            )
        except webhooks.TooManyEndpointsError as too_many:
            raise ProblemError("too_many_webhooks", f"{webhooks.MAX_ENDPOINTS} are allowed") from too_many
        webhook_id: UUID = row["id"]
        return webhook_id

    return await _with_secret(services, caller, await once.make(insert), None if once.replayed else key)


async def _with_secret(
    services: Services, caller: Caller, webhook_id: UUID | None, key: str | None
) -> WebhookWithSecret:
    """Raises ProblemError not_found."""
    row = await queries.get_webhook(services.pool, account_id=caller.account_id, webhook_id=webhook_id)
    if row is None:
        raise not_found("webhook")
    secret = shown_secret(endpoint_secret(key, row["id"], row["secret_version"])) if key else None
    return WebhookWithSecret(**_fields(row), secret=secret)


@get("/webhooks/{webhook_id:uuid}", guards=[needs("read")], summary="Get a webhook")
async def get_webhook(
    webhook_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> Webhook:
    row = await queries.get_webhook(services.pool, account_id=caller.account_id, webhook_id=webhook_id)
    if row is None:
        raise not_found("webhook")
    return Webhook(**_fields(row))


@patch(
    "/webhooks/{webhook_id:uuid}",
    guards=[needs("train")],
    summary="Change, disable or enable a webhook",
    example={"enabled": False},
)
async def change_webhook(
    webhook_id: FromPath[UUID],
    data: JSONBody[ChangeWebhook],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Webhook:
    """Disabling cancels what was still to be sent; enabling sends what happens from then on."""
    _check_url(services.settings, data.url)
    async with services.pool.acquire() as connection:
        row = await webhooks.update_endpoint(
            connection,
            caller.account_id,
            webhook_id,
            url=data.url,
            event_types=data.event_types and list(dict.fromkeys(data.event_types)),
            description=data.description,
            enabled=data.enabled,
        )
    if row is None:
        raise not_found("webhook")
    return Webhook(**_fields(row))


@delete("/webhooks/{webhook_id:uuid}", guards=[needs("train")], status_code=204, summary="Delete a webhook")
async def delete_webhook(
    webhook_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> None:
    """Nothing more is sent, and the log of its deliveries is deleted with it."""
    if await queries.delete_webhook(services.pool, account_id=caller.account_id, webhook_id=webhook_id) is None:
        raise not_found("webhook")


@post(
    "/webhooks/{webhook_id:uuid}/rotate",
    guards=[needs("train")],
    status_code=200,
    summary="Rotate the secret",
    problems=("webhooks_off",),
)
async def rotate_secret(
    webhook_id: FromPath[UUID],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> WebhookWithSecret:
    """The answer has the new secret, this once. For a day messages carry the signatures of both."""

    async def rotate(connection: Connection) -> UUID:
        row = await queries.rotate_webhook_secret(
            connection, account_id=caller.account_id, webhook_id=webhook_id, overlap_s=SECRET_OVERLAP_S
        )
        if row is None:
            raise not_found("webhook")
        return webhook_id

    key = webhook_key(services.settings)
    return await _with_secret(services, caller, await once.make(rotate), None if once.replayed else key)
