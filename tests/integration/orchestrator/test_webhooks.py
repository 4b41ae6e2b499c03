"""From a job's end to the receiver: at least once whatever dies, on schedule, and only to those who asked."""

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp import web
from fusion_core.db import webhooks
from fusion_core.db.pool import queries
from fusion_core.webhooks import RETRY_DELAYS_S, endpoint_secret, shown_secret
from fusion_orchestrator.service import running
from fusion_orchestrator.settings import OrchestratorSettings
from fusion_orchestrator.webhooks import dispatch
from fusion_orchestrator.webhooks.send import DEADLINE_S

from .webhook_receiver import Receiver
from .webhook_rows import KEY, deliveries, enable, endpoint_row, states


@pytest.fixture
def sending(settings: OrchestratorSettings) -> OrchestratorSettings:
    """Sweeps are frequent, since nothing notifies of a lease that ran out."""
    return msgspec.structs.replace(
        settings,
        sweep_s=0.2,
        ring_again_s=0.5,
        webhook_key=KEY,
        webhook_allow_http=True,
        webhook_allow_private="127.0.0.1",
    )


async def make_due(world: Any) -> None:
    """Let the time to the next attempt pass."""
    await world.pool.execute("update webhook_deliveries set next_attempt_at = now() where state = 'pending'")


async def test_an_event_reaches_those_who_asked_for_it(
    sending: OrchestratorSettings, world: Any, receiver: Receiver, eventually: Any
) -> None:
    wanting = await world.webhook(receiver.url, "dataset.ready")
    await world.webhook(receiver.url, "dataset.failed")
    job = await world.queue_job()
    quiet = msgspec.structs.replace(sending, sweep_s=60)  # NOTIFY alone
    async with running(quiet) as service:

        async def listens() -> bool:
            return b"fusion_doorbell_listening 1.0" in service.metrics.text()

        await eventually(listens)
        await world.finish(job)

        async def delivered() -> bool:
            return await states(world) == ["delivered"]

        await eventually(delivered, within_s=5)
        assert b'fusion_webhook_attempts_total{outcome="delivered"} 1.0' in service.metrics.text()
    (got,) = receiver.received
    assert got.id == f"{job.id}:3"  # queued, claimed, completed
    message = got.verified(shown_secret(endpoint_secret(KEY, wanting["id"], 1)))
    assert message["type"] == "dataset.ready"
    assert message["data"] == {"dataset_id": str(job.dataset_id), "seq": 3, "status": "ready"}
    (row,) = await deliveries(world)
    assert (row["endpoint_id"], row["attempts"], row["response_status"]) == (wanting["id"], 1, 200)
    assert (row["response_snippet"], row["error"]) == ("thanks", None)
    assert await world.count("select count(*) from outbox where fanned_out_at is null") == 0


async def test_without_redis_the_sweep_delivers(
    sending: OrchestratorSettings, world: Any, receiver: Receiver, eventually: Any
) -> None:
    await world.webhook(receiver.url)
    await world.finish(await world.queue_job())
    async with running(msgspec.structs.replace(sending, redis_url="redis://127.0.0.1:1/0")):

        async def delivered() -> bool:
            return await states(world) == ["delivered"]

        await eventually(delivered)
    assert len(receiver.received) == 1


async def test_a_ring_that_redis_forgets_is_delivered_by_the_sweep(
    sending: OrchestratorSettings, world: Any, receiver: Receiver, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "QUEUE", "fusion:webhooks:nobody-listens")
    await world.webhook(receiver.url)
    await world.finish(await world.queue_job())
    async with running(sending):

        async def delivered() -> bool:
            return await states(world) == ["delivered"]

        await eventually(delivered)
    assert len(receiver.received) == 1


async def test_failures_are_tried_again_on_schedule_until_given_up(
    sending: OrchestratorSettings, world: Any, receiver: Receiver, eventually: Any
) -> None:
    endpoint = await world.webhook(receiver.url)
    await world.finish(await world.queue_job())
    receiver.answers = [500] * 10
    async with running(sending):
        for attempt, delay_s in enumerate(RETRY_DELAYS_S, 1):

            async def tried(attempt: int = attempt) -> bool:
                (row,) = await deliveries(world) or [None]
                return row is not None and row["attempts"] == attempt and row["lease_expires_at"] is None

            await eventually(tried)
            (row,) = await deliveries(world)
            wait_s = (row["next_attempt_at"] - row["attempted_at"]).total_seconds()
            assert row["state"] == "pending"
            assert row["error"] == "answered 500"
            assert 0.89 * delay_s < wait_s < 1.11 * delay_s + 2
            await make_due(world)

        async def given_up() -> bool:
            return await states(world) == ["failed"]

        await eventually(given_up)
        row = await endpoint_row(world, endpoint)
        assert (row["enabled"], row["disabled_reason"]) == (False, "exhausted")
        assert row["failing_since"] < row["gave_up_at"]
        await enable(world, endpoint)
        await world.finish(await world.queue_job())

        async def recovered() -> bool:
            return await states(world) == ["failed", "delivered"]

        await eventually(recovered)
    row = await endpoint_row(world, endpoint)
    assert (row["enabled"], row["failing_since"], row["gave_up_at"]) == (True, None, None)
    assert len({got.body for got in receiver.received[:10]}) == 1, "the same bytes at every attempt"


async def test_gone_disables_the_endpoint_and_cancels_the_rest(
    sending: OrchestratorSettings, world: Any, receiver: Receiver, eventually: Any
) -> None:
    endpoint = await world.webhook(receiver.url)
    receiver.answers = [500, 410]
    async with running(sending):
        await world.finish(await world.queue_job())

        async def failed_once() -> bool:
            return [row["error"] for row in await deliveries(world)] == ["answered 500"]

        await eventually(failed_once)
        await world.pool.execute("update webhook_deliveries set next_attempt_at = now() + interval '1 h'")
        await world.finish(await world.queue_job())

        async def ended() -> bool:
            return await states(world) == ["cancelled", "failed"]

        await eventually(ended)
        await world.finish(await world.queue_job())

        async def fanned_out() -> bool:
            return await world.count("select count(*) from outbox where fanned_out_at is null") == 0

        await eventually(fanned_out)
    assert len(await deliveries(world)) == 2
    row = await world.pool.fetchrow(
        "select enabled, disabled_reason from webhook_endpoints where id = $1", endpoint["id"]
    )
    assert tuple(row) == (False, "gone")


@pytest.mark.parametrize("changes", [{}, {"redis_url": "redis://127.0.0.1:1/0"}], ids=["", "without Redis"])
async def test_one_slow_endpoint_does_not_delay_another(
    sending: OrchestratorSettings, world: Any, receiver: Receiver, eventually: Any, changes: dict[str, str]
) -> None:
    all_there = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await all_there.wait()
        return web.Response()

    async with Receiver() as sluggish:
        sluggish.answers = [slow] * 40
        sending = msgspec.structs.replace(sending, **changes)
        await world.webhook(sluggish.url)
        await world.webhook(receiver.url)
        for _ in range(20):
            await world.finish(await world.queue_job())
        async with running(sending):

            async def all_received() -> bool:
                return len(receiver.received) == 20

            await eventually(all_received, within_s=DEADLINE_S - 1)
            assert len(sluggish.received) <= webhooks.PER_ENDPOINT
            all_there.set()


@pytest.mark.parametrize("change", ["delete", "disable"])
async def test_an_endpoint_that_goes_during_a_delivery(
    sending: OrchestratorSettings, world: Any, receiver: Receiver, eventually: Any, change: str
) -> None:
    endpoint = await world.webhook(receiver.url)
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        arrived.set()
        await go_on.wait()
        return web.Response()

    receiver.answers = [slow]
    await world.finish(await world.queue_job())
    async with running(sending) as service:
        await asyncio.wait_for(arrived.wait(), 10)
        async with world.pool.acquire() as conn:
            if change == "delete":
                await queries.delete_webhook(conn, account_id=await world.account(), webhook_id=endpoint["id"])
            else:
                unchanged = {"url": None, "event_types": None, "description": None}
                await webhooks.update_endpoint(conn, await world.account(), endpoint["id"], **unchanged, enabled=False)
        go_on.set()

        async def attempted() -> bool:
            return b'fusion_webhook_attempts_total{outcome="delivered"} 1.0' in service.metrics.text()

        await eventually(attempted)
        assert service.dead_loops() == []
        assert b"fusion_loop_errors_total{" not in service.metrics.text()
    assert await states(world) == ([] if change == "delete" else ["cancelled"])
    assert len(receiver.received) == 1


async def test_without_a_key_the_outbox_is_emptied_and_nothing_sent(
    settings: OrchestratorSettings, world: Any, receiver: Receiver, eventually: Any
) -> None:
    await world.webhook(receiver.url)
    await world.finish(await world.queue_job())
    async with running(msgspec.structs.replace(settings, sweep_s=0.1)) as service:

        async def emptied() -> bool:
            return await states(world) == ["pending"]

        await eventually(emptied)
        await asyncio.sleep(0.3)
        assert service.dead_loops() == []
    assert receiver.received == []
