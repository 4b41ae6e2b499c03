"""Webhooks of the account: `client.webhooks`, one method an operation."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from fusion_client.transport import Transport, new_key, segment

_PATH = "/api/webhooks"


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Where events are sent. `disabled_reason` is customer, gone or exhausted; `failing_since` the first failure after
    the last success.
    """

    id: str
    url: str
    event_types: tuple[str, ...]
    description: str
    enabled: bool
    disabled_reason: str | None
    failing_since: datetime | None
    previous_secret_until: datetime | None
    created_at: datetime


class NewWebhook(Webhook, frozen=True, kw_only=True):
    """A webhook whose secret is new; it is shown this once."""

    secret: str

    def __repr__(self) -> str:
        return f"NewWebhook(id={self.id!r}, url={self.url!r})"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way to one webhook. `status` is pending, delivered, failed or cancelled; `response_status`,
    `response_body` and `error` are those of the last attempt. `message` is what is sent, shown by `get_delivery`.
    """

    id: str
    event_id: str
    type: str
    status: str
    attempts: int
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None
    response_status: int | None
    response_body: str | None
    error: str | None
    created_at: datetime
    message: dict[str, Any] | None = None


class Webhooks:
    """Every method raises what those of Fusion raise."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, url: str, event_types: Sequence[str] = (), description: str = "") -> NewWebhook:
        """POST /api/webhooks; without `event_types` it gets every event.

        Not repeated on failure: the secret of a repeated answer would be gone.
        """
        body = {"url": url, "description": description} | ({"event_types": list(event_types)} if event_types else {})
        return self._transport.post(_PATH, NewWebhook, body)

    def list(self, limit: int = 100) -> Sequence[Webhook]:
        """GET /api/webhooks, newest first."""
        return self._transport.get_pages(_PATH, Webhook, limit)

    def get(self, webhook_id: str) -> Webhook:
        """GET /api/webhooks/{id}."""
        return self._transport.get(_path(webhook_id), Webhook)

    def change(self, webhook_id: str, **fields: Any) -> Webhook:
        """PATCH /api/webhooks/{id}: `url`, `event_types`, `description`, `enabled`; what is left out stays as it is."""
        return self._transport.patch(_path(webhook_id), Webhook, fields)

    def delete(self, webhook_id: str) -> None:
        """DELETE /api/webhooks/{id}: nothing more is sent, and its deliveries are deleted."""
        self._transport.request("DELETE", _path(webhook_id))

    def rotate(self, webhook_id: str) -> NewWebhook:
        """POST /api/webhooks/{id}/rotate: a new secret; for a day the one before signs, too. Not repeated."""
        return self._transport.post(f"{_path(webhook_id)}/rotate", NewWebhook, None)

    def test(self, webhook_id: str) -> Delivery:
        """POST /api/webhooks/{id}/test: a `webhook.test` message, tried once."""
        return self._transport.post(f"{_path(webhook_id)}/test", Delivery, None, new_key())

    def deliveries(self, webhook_id: str, limit: int = 100, status: str | None = None) -> Sequence[Delivery]:
        """GET /api/webhooks/{id}/deliveries, newest first; with `status` only those that are so."""
        only = {"status": status} if status is not None else None
        return self._transport.get_pages(f"{_path(webhook_id)}/deliveries", Delivery, limit, only)

    def get_delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        """GET /api/webhooks/{id}/deliveries/{id}."""
        return self._transport.get(f"{_path(webhook_id)}/deliveries/{segment(delivery_id)}", Delivery)

    def replay(self, webhook_id: str, delivery_id: str) -> Delivery:
        """POST /api/webhooks/{id}/deliveries/{id}/replay: send it again, with all its attempts."""
        path = f"{_path(webhook_id)}/deliveries/{segment(delivery_id)}/replay"
        return self._transport.post(path, Delivery, None, new_key())


def _path(webhook_id: str) -> str:
    return f"{_PATH}/{segment(webhook_id)}"
