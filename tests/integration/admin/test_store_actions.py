"""Actions on what is sent and what is stored: replaying webhooks, pruning."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

from fusion_core.db import webhooks
from fusion_orchestrator.service import Service

from tests.integration.db.conftest import World

from .conftest import Ask, check_problem
from .test_actions import WHY, lines


async def test_what_never_arrived_is_sent_again(world: World, ask: Ask) -> None:
    account_id = await world.account()
    async with world.pool.acquire() as conn:
        hook: UUID = (
            await webhooks.create_endpoint(
                conn, account_id, url="https://x.example", event_types=["job.completed"], description=""
            )
        )["id"]
        lost = [(await webhooks.add_test(conn, account_id, hook))["id"] for _ in range(3)]
    await world.pool.execute(
        "update webhook_deliveries set state = 'failed', next_attempt_at = null, finished_at = now(), attempts = 9"
        " where id = any($1)", lost[:2],
    )  # fmt: skip
    body = WHY | {"webhook_id": str(hook)}
    done = (await ask("POST", "/admin/webhooks/replay", json=body)).json()
    assert (done["before"], done["after"]) == ({"undelivered": 2}, {"undelivered": 0})
    states = await world.pool.fetch("select state, attempts from webhook_deliveries")
    assert [tuple(row) for row in states] == [("pending", 0)] * 3
    assert (await ask("POST", "/admin/webhooks/replay", json=body)).json()["changed"] is False
    assert len(await lines(world)) == 1
    await world.pool.execute("update webhook_endpoints set enabled = false, disabled_reason = 'gone'")
    await world.pool.execute(
        "update webhook_deliveries set state = 'cancelled', next_attempt_at = null, finished_at = now()"
    )
    check_problem(await ask("POST", "/admin/webhooks/replay", json=body), "webhook_disabled")
    check_problem(await ask("POST", "/admin/webhooks/replay", json=WHY | {"webhook_id": str(uuid4())}), "not_found")


async def test_pruning_begins_beside_the_request_and_a_dry_run_only_counts(
    world: World, ask: Ask, storage: Any, service: Service
) -> None:
    await storage.put_bytes(f"tmp/{uuid4()}/{uuid4()}/x", b"x")
    dry = await ask("POST", "/admin/storage/prune", json=WHY | {"dry_run": True})
    assert (dry.status_code, dry.json()["upload_objects"]) == (200, 0), "too young to go"
    assert await lines(world) == []
    ordered = await ask("POST", "/admin/storage/prune", json=WHY)
    assert (ordered.status_code, ordered.json()["after"]) == (202, {"ordered": True})
    await asyncio.wait_for(service.prune_wake.wait(), 5)
    assert len(await lines(world)) == 1
