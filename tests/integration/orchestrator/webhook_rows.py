"""What tests of webhooks read from Postgres, and what an orchestrator does there first."""

from typing import Any

from fusion_core.db import webhooks

KEY = "test-key-" * 4


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


async def due(world: Any) -> list[webhooks.Ring]:
    async with world.pool.acquire() as conn:
        await webhooks.fan_out(conn, limit=100)
        return await webhooks.ring_due(conn, again_s=10, limit=100)
