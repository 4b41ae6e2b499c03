"""`fusion webhooks`: where events are sent, whether they arrive, and sending them again."""

import time
from typing import Annotated

import typer

from fusion_client.terminal import notes, out, session, table, time_text
from fusion_client.webhooks import Delivery, NewWebhook

_TEST_DEADLINE_S = 30.0
_POLL_S = 0.5

webhooks_app = typer.Typer(name="webhooks", no_args_is_help=True, help="Hear of jobs and datasets without asking.")

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The webhook's id.")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="The delivery's id.")]


@webhooks_app.command("list")
def list_webhooks() -> None:
    """List your webhooks, newest first."""
    with session() as client:
        rows = [
            [
                one.id,
                one.url,
                "enabled" if one.enabled else f"disabled ({one.disabled_reason})",
                time_text(one.failing_since),
                ", ".join(one.event_types),
            ]
            for one in client.webhooks.list()
        ]
        table("id", "url", "state", "failing since", "events", rows=rows)


@webhooks_app.command()
def create(
    url: Annotated[str, typer.Argument(help="Where to send events: https to a public address.")],
    event: Annotated[list[str] | None, typer.Option(help="An event to send; repeat it. All without it.")] = None,
    description: Annotated[str, typer.Option(help="For yourself.")] = "",
) -> None:
    """Make a webhook; prints its id and the secret that signs its messages, which is shown this once."""
    with session() as client:
        _show_secret(client.webhooks.create(url, event or (), description))


@webhooks_app.command()
def rotate(webhook_id: WebhookId) -> None:
    """Give a webhook a new secret, shown this once; for a day the one before signs, too."""
    with session() as client:
        _show_secret(client.webhooks.rotate(webhook_id))


def _show_secret(webhook: NewWebhook) -> None:
    notes.print("keep the secret: it is not shown again", highlight=False)
    for line in (webhook.id, webhook.secret):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@webhooks_app.command()
def enable(webhook_id: WebhookId) -> None:
    """Send events to a webhook again, from now on."""
    with session() as client:
        client.webhooks.change(webhook_id, enabled=True)


@webhooks_app.command()
def disable(webhook_id: WebhookId) -> None:
    """Send nothing more to a webhook; what was still to be sent is cancelled."""
    with session() as client:
        client.webhooks.change(webhook_id, enabled=False)


@webhooks_app.command()
def delete(webhook_id: WebhookId) -> None:
    """Delete a webhook with the log of its deliveries."""
    with session() as client:
        client.webhooks.delete(webhook_id)


@webhooks_app.command()
def test(webhook_id: WebhookId) -> None:
    """Send a test event and say what the receiver answered; ends with status 1 unless it arrived."""
    with session() as client:
        delivery = client.webhooks.test(webhook_id)
        deadline = time.monotonic() + _TEST_DEADLINE_S
        while delivery.status == "pending" and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            delivery = client.webhooks.get_delivery(webhook_id, delivery.id)
    notes.print(f"{delivery.status}: {_said(delivery)}", markup=False, highlight=False)
    if delivery.status != "delivered":
        raise typer.Exit(1)


@webhooks_app.command()
def deliveries(webhook_id: WebhookId) -> None:
    """List what was sent to a webhook, newest first."""
    with session() as client:
        rows = [
            [one.id, one.type, one.status, str(one.attempts), time_text(one.last_attempt_at), _said(one)]
            for one in client.webhooks.deliveries(webhook_id)
        ]
        table("id", "event", "status", "attempts", "last attempt", "answer", rows=rows)


def _said(delivery: Delivery) -> str:
    return delivery.error or (f"answered {delivery.response_status}" if delivery.response_status else "not sent yet")


@webhooks_app.command()
def replay(webhook_id: WebhookId, delivery_id: DeliveryId) -> None:
    """Send a delivery again, whatever became of it."""
    with session() as client:
        client.webhooks.replay(webhook_id, delivery_id)
