"""From a job's end to the receiver: at least once whatever dies, on schedule, and only to those who asked."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from fusion_core.db import webhooks
from fusion_core.db.webhooks import Answer
from fusion_core.webhooks import RETRY_DELAYS_S, endpoint_secret, shown_secret
from fusion_local.stack import free_port
from fusion_orchestrator.service import running
from fusion_orchestrator.settings import OrchestratorSettings
from fusion_orchestrator.webhooks import dispatch

from .webhook_receiver import Receiver

KEY = "test-key-" * 4


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


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


async def deliveries(world: Any) -> list[Any]:
    rows: list[Any] = await world.pool.fetch("select * from webhook_deliveries order by id")
    return rows


async def states(world: Any) -> list[str]:
    return [row["state"] for row in await deliveries(world)]


async def endpoint_row(world: Any, endpoint: Any) -> Any:
    return await world.pool.fetchrow("select * from webhook_endpoints where id = $1", endpoint["id"])


async def enable(world: Any, endpoint: Any) -> None:
    unchanged = {"url": None, "event_types": None, "description": None}
    async with world.pool.acquire() as conn:
        await webhooks.update_endpoint(conn, await world.account(), endpoint["id"], **unchanged, enabled=True)


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


async def last_attempt_fails(world: Any) -> None:
    """The oldest delivery that waits fails, as if that had been its last attempt."""
    await due(world)
    delivery_id = await world.pool.fetchval("select id from webhook_deliveries where state = 'pending' order by id")
    async with world.pool.acquire() as conn:
        delivery = await webhooks.claim(conn, delivery_id, lease_s=30)
        assert delivery is not None
        await webhooks.record(conn, delivery, Answer(outcome="failed", error="answered 500"))


async def test_an_endpoint_that_takes_other_events_is_not_disabled_for_one_that_it_refuses(
    world: Any, receiver: Receiver
) -> None:
    endpoint = await world.webhook(receiver.url)
    for _ in range(2):
        await world.finish(await world.queue_job())
    (first, _) = await due(world)
    async with world.pool.acquire() as conn:
        delivery = await webhooks.claim(conn, first.delivery_id, lease_s=30)
        assert delivery is not None
        await webhooks.record(conn, delivery, Answer(outcome="delivered", status=200))
    await last_attempt_fails(world)
    row = await endpoint_row(world, endpoint)
    assert row["enabled"]
    assert row["gave_up_at"] is not None
    await world.finish(await world.queue_job())
    await world.pool.execute("update webhook_deliveries set finished_at = now() - interval '76 h' where attempts = 1")
    await last_attempt_fails(world)
    row = await endpoint_row(world, endpoint)
    assert (row["enabled"], row["disabled_reason"]) == (False, "exhausted")


async def test_a_test_event_that_fails_says_nothing_of_its_endpoint(world: Any, receiver: Receiver) -> None:
    endpoint = await world.webhook(receiver.url)
    async with world.pool.acquire() as conn:
        test = await webhooks.add_test(conn, await world.account(), endpoint["id"])
        delivery = await webhooks.claim(conn, test["id"], lease_s=30)
        assert delivery is not None
        await webhooks.record(conn, delivery, Answer(outcome="failed", error="answered 500"))
    row = await endpoint_row(world, endpoint)
    assert (row["enabled"], row["failing_since"], row["gave_up_at"]) == (True, None, None)


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


async def test_one_slow_endpoint_does_not_delay_another(
    sending: OrchestratorSettings, world: Any, receiver: Receiver, eventually: Any
) -> None:
    async def slow(_request: web.Request) -> web.Response:
        await asyncio.sleep(3)
        return web.Response()

    async with Receiver() as sluggish:
        sluggish.answers = [slow] * 40
        await world.webhook(sluggish.url)
        await world.webhook(receiver.url)
        for _ in range(20):
            await world.finish(await world.queue_job())
        async with running(sending):

            async def all_received() -> bool:
                return len(receiver.received) == 20

            await eventually(all_received, within_s=2.9)
            assert len(sluggish.received) <= webhooks.PER_ENDPOINT


class Process:
    """An orchestrator as a process of its own, which can be killed."""

    def __init__(self, environment: dict[str, str], log: Path, **extra: str) -> None:
        self.log = log
        self._environment = environment | extra | {"FUSION_PORT": str(free_port()), "PATH": os.environ["PATH"]}

    async def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fusion_orchestrator", env=self._environment, stderr=log, stdout=log
            )

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()


@pytest.fixture
def environment(service_environment: dict[str, str]) -> dict[str, str]:
    return service_environment | {
        "FUSION_WEBHOOK_KEY": KEY,
        "FUSION_WEBHOOK_ALLOW_HTTP": "true",
        "FUSION_WEBHOOK_ALLOW_PRIVATE": "127.0.0.1",
        "FUSION_SWEEP_S": "0.2",
        "FUSION_RING_AGAIN_S": "0.5",
    }


async def test_a_process_killed_between_sending_and_recording_repeats_it(
    environment: dict[str, str], world: Any, receiver: Receiver, eventually: Any, tmp_path: Path
) -> None:
    await world.webhook(receiver.url)
    await world.finish(await world.queue_job())
    killed = Process(environment, tmp_path / "killed.log", FUSION_FAILPOINT="webhook_sent")
    await killed.start()
    assert await killed.ended() == -signal.SIGKILL, killed.log.read_text()
    assert len(receiver.received) == 1
    (row,) = await deliveries(world)
    assert (row["state"], row["attempts"]) == ("pending", 1)

    survivor = Process(environment, tmp_path / "survivor.log")
    await survivor.start()
    try:
        await asyncio.sleep(1.5)
        assert len(receiver.received) == 1, "the lease of the dead has not run out"
        await world.pool.execute("update webhook_deliveries set lease_expires_at = now()")

        async def delivered() -> bool:
            return await states(world) == ["delivered"]

        await eventually(delivered, within_s=20)
    finally:
        assert await survivor.stop() == 0
    assert len(receiver.received) == 2
    assert receiver.received[0].id == receiver.received[1].id
    assert receiver.received[0].body == receiver.received[1].body
    assert KEY not in survivor.log.read_text()
    assert receiver.url not in survivor.log.read_text()


async def test_two_replicas_send_each_delivery_once(
    environment: dict[str, str], world: Any, receiver: Receiver, eventually: Any, tmp_path: Path
) -> None:
    for _ in range(3):
        await world.webhook(receiver.url)
    pair = [Process(environment, tmp_path / f"replica-{number}.log") for number in (1, 2)]
    for process in pair:
        await process.start()
    try:
        for _ in range(20):
            await world.finish(await world.queue_job())

        async def all_delivered() -> bool:
            return await states(world) == ["delivered"] * 60

        await eventually(all_delivered, within_s=60)
    finally:
        assert [await process.stop() for process in pair] == [0, 0]
    assert len(receiver.received) == 60
    assert len({got.id for got in receiver.received}) == 20
    assert await world.count("select max(attempts) from webhook_deliveries") == 1
    assert all("webhook_attempt" in process.log.read_text() for process in pair), "both shared the work"


# -- what Postgres decides -------------------------------------------------------------------------------------------


async def due(world: Any) -> list[webhooks.Ring]:
    async with world.pool.acquire() as conn:
        await webhooks.fan_out(conn, limit=100)
        return await webhooks.ring_due(conn, again_s=10, limit=100)


async def test_endpoints_and_accounts_take_turns(world: Any, receiver: Receiver) -> None:
    """So many at once of an endpoint and of an account, and one of an endpoint that fails."""
    for _ in range(6):
        await world.webhook(receiver.url)
    for _ in range(10):
        await world.finish(await world.queue_job())
    rung = {ring.delivery_id for ring in await due(world)}
    assert len(rung) == webhooks.PER_ACCOUNT
    of_endpoints = Counter(row["endpoint_id"] for row in await deliveries(world) if row["id"] in rung)
    assert len(of_endpoints) == 6
    assert max(of_endpoints.values()) <= webhooks.PER_ENDPOINT
    assert await due(world) == [], "all the places are taken"
    await world.pool.execute(
        "update webhook_deliveries set state = 'delivered', next_attempt_at = null,"
        " finished_at = now() where rung_at is not null"
    )
    await world.pool.execute("update webhook_endpoints set failing_since = now()")
    assert len(await due(world)) == 6


async def test_of_many_claimers_one_gets_a_delivery(world: Any, receiver: Receiver) -> None:
    await world.webhook(receiver.url)
    await world.finish(await world.queue_job())
    (ring,) = await due(world)
    assert await due(world) == [], "rung for once"

    async def claim() -> webhooks.Delivery | None:
        async with world.pool.acquire() as conn:
            return await webhooks.claim(conn, ring.delivery_id, lease_s=30)

    claims = [one for one in await asyncio.gather(*(claim() for _ in range(10))) if one is not None]
    assert len(claims) == 1


async def test_whoever_lost_the_lease_records_nothing(world: Any, receiver: Receiver) -> None:
    await world.webhook(receiver.url)
    await world.finish(await world.queue_job())
    (ring,) = await due(world)
    async with world.pool.acquire() as conn:
        late = await webhooks.claim(conn, ring.delivery_id, lease_s=30)
        await conn.execute("update webhook_deliveries set lease_expires_at = now() - interval '1 s'")
        current = await webhooks.claim(conn, ring.delivery_id, lease_s=30)
        assert late is not None
        assert current is not None
        assert not await webhooks.record(conn, late, Answer(outcome="failed", error="late"))
        assert await states(world) == ["pending"]
        assert await webhooks.record(conn, current, Answer(outcome="delivered", status=200))
        assert await states(world) == ["delivered"]
        assert not await webhooks.record(conn, current, Answer(outcome="failed", error="again"))


async def test_a_disabled_endpoint_gets_nothing_and_events_before_an_endpoint_are_not_its_own(
    world: Any, receiver: Receiver
) -> None:
    await world.finish(await world.queue_job())
    endpoint = await world.webhook(receiver.url)
    assert await due(world) == []
    await world.finish(await world.queue_job())
    async with world.pool.acquire() as conn:
        await webhooks.fan_out(conn, limit=100)
        unchanged = {"url": None, "event_types": None, "description": None}
        account_id = await world.account()
        await webhooks.update_endpoint(conn, account_id, endpoint["id"], **unchanged, enabled=False)
        assert await states(world) == ["cancelled"]
    await world.finish(await world.queue_job())
    assert await due(world) == []
    assert await states(world) == ["cancelled"]


async def test_the_secret_before_signs_too_until_its_time_is_over(world: Any, receiver: Receiver) -> None:
    endpoint = await world.webhook(receiver.url)
    await world.pool.execute(
        "update webhook_endpoints set secret_version = 3, previous_secret_until = now() + interval '1 h'"
    )
    for versions in ((3, 2), (3,)):
        await world.finish(await world.queue_job())
        (ring,) = await due(world)
        async with world.pool.acquire() as conn:
            delivery = await webhooks.claim(conn, ring.delivery_id, lease_s=30)
        assert delivery is not None
        assert (delivery.endpoint_id, delivery.secret_versions) == (endpoint["id"], versions)
        await world.pool.execute("update webhook_endpoints set previous_secret_until = now()")


async def test_old_rows_are_forgotten(world: Any, receiver: Receiver) -> None:
    await world.webhook(receiver.url)
    await world.finish(await world.queue_job())
    await world.finish(await world.queue_job())
    done, _ = await due(world)
    async with world.pool.acquire() as conn:
        claimed = await webhooks.claim(conn, done.delivery_id, lease_s=30)
        assert claimed is not None
        await webhooks.record(conn, claimed, Answer(outcome="delivered", status=200))
        await webhooks.forget_old(conn)
        assert len(await deliveries(world)) == 2
        await conn.execute(
            "update webhook_deliveries set finished_at = now() - interval '31 days' where state <> 'pending'"
        )
        await conn.execute("update outbox set fanned_out_at = now() - interval '31 days' where seq = 3")
        await webhooks.forget_old(conn)
        assert await states(world) == ["pending"]
        assert await world.count("select count(*) from outbox") == 0


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
