"""What Postgres decides about deliveries: who gets one, whose answer counts, who takes turns, what is forgotten."""

import asyncio
from collections import Counter
from typing import Any

from fusion_core.db import webhooks
from fusion_core.db.webhooks import Answer

from .webhook_receiver import Receiver
from .webhook_rows import deliveries, due, endpoint_row, states


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
        await conn.execute("update outbox set fanned_out_at = now() - interval '31 days'")
        await webhooks.forget_old(conn)
        assert await states(world) == ["pending"]
        assert await world.count("select count(*) from outbox") == 0
