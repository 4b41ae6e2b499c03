"""Webhooks in Postgres: the outbox becomes deliveries, deliveries are claimed under a lease, answers are recorded.

Any number of orchestrators may call these at once. A delivery is sent at least once: a process that dies between the
receiver's answer and `record` leaves a lease that runs out, and the delivery is sent again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

import msgspec

from fusion_core.db.pool import Connection, queries
from fusion_core.webhooks import SHORTEST_SCHEDULE_S, TEST_EVENT, Message, wanted_type

MAX_ENDPOINTS = 20
KEEP_DAYS = 30
SNIPPET_LENGTH = 4096
PER_ENDPOINT, PER_ACCOUNT = 4, 16  # deliveries under way at once, so that slow receivers delay nobody else's

Outcome = Literal["delivered", "retry", "failed", "gone"]


class TooManyEndpointsError(Exception):
    """The account has MAX_ENDPOINTS already."""


class EndpointDisabledError(Exception):
    """Nothing is sent to this endpoint until it is enabled."""


class Ring(msgspec.Struct, frozen=True):
    """A delivery that is due. `number` counts the rings since its last claim: beyond 1, nobody came."""

    delivery_id: UUID
    number: int


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one delivery, claimed by this process."""

    id: UUID
    endpoint_id: UUID
    epoch: int
    attempts: int
    message_id: str
    message: Message
    url: str
    secret_versions: tuple[int, ...]
    traceparent: str | None = None

    @property
    def is_test(self) -> bool:
        return self.message.type == TEST_EVENT


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an attempt. `retry_s` is given where the outcome is `retry`; `error` where it is no success."""

    outcome: Outcome
    retry_s: float | None = None
    status: int | None = None
    snippet: str | None = None
    error: str | None = None


# -- the customer's side ---------------------------------------------------------------------------------------------


async def create_endpoint(
    conn: Connection, account_id: UUID, *, url: str, event_types: Sequence[str], description: str
) -> Any:
    """The new row. Raises TooManyEndpointsError."""
    async with conn.transaction():
        await queries.lock_webhooks_of_account(conn, account_id=account_id)
        if await queries.count_webhooks(conn, account_id=account_id) >= MAX_ENDPOINTS:
            raise TooManyEndpointsError(account_id)
        return await queries.insert_webhook(
            conn, account_id=account_id, url=url, event_types=list(event_types), description=description
        )


async def update_endpoint(
    conn: Connection,
    account_id: UUID,
    endpoint_id: UUID,
    *,
    url: str | None,
    event_types: Sequence[str] | None,
    description: str | None,
    enabled: bool | None,
) -> Any:
    """The changed row, None where the account has no such endpoint. Disabling cancels what was still to be sent."""
    async with conn.transaction():
        row = await queries.update_webhook(
            conn,
            account_id=account_id,
            webhook_id=endpoint_id,
            url=url,
            event_types=None if event_types is None else list(event_types),
            description=description,
            enabled=enabled,
        )
        if row is not None and not row["enabled"]:
            await queries.cancel_deliveries(conn, webhook_id=endpoint_id)
        return row


async def add_test(conn: Connection, account_id: UUID, endpoint_id: UUID) -> Any:
    """A delivery of a test event, due now. None: no such endpoint of this account. Raises EndpointDisabledError."""
    async with conn.transaction():
        if not await _lock_enabled(conn, account_id, endpoint_id):
            return None
        data = {"message": "This is a test: the endpoint works."}
        return await queries.insert_test_delivery(conn, webhook_id=endpoint_id, type=TEST_EVENT, data=data)


async def replay(conn: Connection, account_id: UUID, endpoint_id: UUID, delivery_id: UUID) -> Any:
    """Make a delivery due again, whatever became of it; one that is being sent just now is answered as it is.

    None: the account has no such delivery. Raises EndpointDisabledError.
    """
    async with conn.transaction():
        if not await _lock_enabled(conn, account_id, endpoint_id):
            return None
        found = {"webhook_id": endpoint_id, "delivery_id": delivery_id}
        return await queries.replay_delivery(conn, **found) or await queries.get_delivery(conn, **found)


async def _lock_enabled(conn: Connection, account_id: UUID, endpoint_id: UUID) -> bool:
    """False: no such endpoint. Raises EndpointDisabledError."""
    row = await queries.lock_webhook(conn, account_id=account_id, webhook_id=endpoint_id)
    if row is not None and not row["enabled"]:
        raise EndpointDisabledError(endpoint_id)
    return row is not None


# -- the orchestrator's side -----------------------------------------------------------------------------------------


async def fan_out(conn: Connection, *, limit: int) -> Sequence[Mapping[str, Any]]:
    """Turn the oldest events of the outbox into deliveries; answers the events taken, each once to one replica."""
    async with conn.transaction():
        events = [row async for row in queries.take_outbox(conn, limit=limit)]
        if not events:
            return events
        accounts = list({event["account_id"] for event in events})
        endpoints = [row async for row in queries.webhooks_of_accounts(conn, account_ids=accounts)]
        chosen = [
            (endpoint["id"], event, event_type)
            for event in events
            for endpoint in endpoints
            if endpoint["account_id"] == event["account_id"] and endpoint["created_at"] <= event["created_at"]
            if (event_type := wanted_type(event["topic"], endpoint["event_types"])) is not None
        ]
        await queries.insert_deliveries(
            conn,
            endpoint_ids=[endpoint_id for endpoint_id, _, _ in chosen],
            job_ids=[event["job_id"] for _, event, _ in chosen],
            seqs=[event["seq"] for _, event, _ in chosen],
            types=[event_type for _, _, event_type in chosen],
            payloads=[msgspec.json.encode(event_data(event)).decode() for _, event, _ in chosen],
            occurred=[event["occurred_at"] for _, event, _ in chosen],
        )
        await queries.finish_outbox(
            conn, job_ids=[event["job_id"] for event in events], seqs=[event["seq"] for event in events]
        )
        return events


def event_data(event: Mapping[str, Any]) -> dict[str, Any]:
    """The `data` of an event's message: what it is about, its place in the job's sequence, what happened.

    A failure's list of faults can be long: the message has code and text, the API has the list.
    """
    topic, details = event["topic"], dict(event["data"])
    if topic.startswith("dataset."):
        about = {"dataset_id": str(event["dataset_id"])}
        details.pop("dataset_id", None)
    else:
        about = {"job_id": str(event["job_id"]), "job_type": event["job_type"]}
    status = {"job.started": "running", "job.checkpoint": "running"}.get(topic, topic.partition(".")[2])
    if topic.endswith(".failed"):
        details = {"error": {"code": details.get("code"), "message": details.get("message")}}
    return {**about, "seq": event["seq"], "status": status, **details}


async def ring_due(conn: Connection, *, again_s: float, limit: int) -> list[Ring]:
    """The deliveries to ring for now, each marked so that no other replica rings for it within `again_s`."""
    rows = queries.ring_due_deliveries(
        conn, per_endpoint=PER_ENDPOINT, per_account=PER_ACCOUNT, again_s=again_s, limit=limit
    )
    return [Ring(row["id"], row["ring_count"]) async for row in rows]


async def claim(conn: Connection, delivery_id: UUID, *, lease_s: float) -> Delivery | None:
    """Take a due delivery for one attempt. None: it is done, not due, or another process has it."""
    row = await queries.claim_delivery(conn, delivery_id=delivery_id, lease_s=lease_s)
    if row is None:
        return None
    version = row["secret_version"]
    return Delivery(
        id=row["id"],
        endpoint_id=row["endpoint_id"],
        epoch=row["lease_epoch"],
        attempts=row["attempts"],
        message_id=message_id(row),
        message=Message(row["type"], row["occurred_at"].replace(microsecond=0), row["data"]),
        url=row["url"],
        secret_versions=(version, version - 1) if row["previous_secret_valid"] else (version,),
        traceparent=row["traceparent"],
    )


def message_id(row: Mapping[str, Any]) -> str:
    """The same for every endpoint and every attempt: `<job>:<seq>`; a test has only itself."""
    return f"test:{row['id']}" if row["job_id"] is None else f"{row['job_id']}:{row['seq']}"


async def record(conn: Connection, delivery: Delivery, answer: Answer) -> bool:
    """Write down an attempt's end. False: the lease was lost meanwhile, and the delivery stays as it is.

    `gone` disables the endpoint, and so does `failed` where nothing else has arrived since the first attempt; what was
    still to be sent is cancelled then. What the receiver said of its endpoint counts even when the lease was lost.
    """
    state = {"delivered": "delivered", "retry": "pending"}.get(answer.outcome, "failed")
    async with conn.transaction():
        await _note(conn, delivery, answer.outcome)
        written = await queries.record_attempt(
            conn,
            delivery_id=delivery.id,
            lease_epoch=delivery.epoch,
            state=state,
            retry_s=answer.retry_s,
            response_status=answer.status,
            response_snippet=answer.snippet,
            error=answer.error,
        )
        disabled = answer.outcome == "gone"
        if answer.outcome == "failed" and written is not None and not delivery.is_test:
            found = {"webhook_id": delivery.endpoint_id, "quiet_s": SHORTEST_SCHEDULE_S}
            disabled = await queries.disable_exhausted(conn, **found) is not None
        if disabled:
            await queries.cancel_deliveries(conn, webhook_id=delivery.endpoint_id)
        return written is not None


async def _note(conn: Connection, delivery: Delivery, outcome: Outcome) -> None:
    """What an attempt says of its endpoint. A test that fails says nothing, unless the endpoint is gone."""
    if outcome == "delivered":
        await queries.note_webhook_success(conn, webhook_id=delivery.endpoint_id)
    elif outcome == "gone" or not delivery.is_test:
        gave_up, gone = outcome == "failed", outcome == "gone"
        await queries.note_webhook_failure(conn, webhook_id=delivery.endpoint_id, gave_up=gave_up, gone=gone)


async def forget_old(conn: Connection, *, days: int = KEEP_DAYS, limit: int = 1000) -> None:
    """Delete deliveries that ended, and outbox rows that were fanned out, longer than `days` ago."""
    await queries.forget_deliveries(conn, days=days, limit=limit)
    await queries.forget_outbox(conn, days=days, limit=limit)
