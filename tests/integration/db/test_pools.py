"""Workers say what machine their pool has."""

from typing import Any

from fusion_core.db.pool import queries


async def test_a_worker_declares_its_pool_and_one_that_says_nothing_changes_nothing(world: Any) -> None:
    worker_id = world.claimer.worker_id
    facts = {"name": "w", "pool": "big", "spec_version": 1, "capabilities": [], "version": "1", "gpus": 8}
    await queries.register_worker(world.pool, id=worker_id, **facts)

    async def declare(gpu_class: str | None, count: int) -> tuple[str | None, int]:
        await queries.declare_pool(world.pool, pool="big", gpu_class=gpu_class, gpu_count=count, worker_id=worker_id)
        (row,) = await world.pool.fetch("select * from pools")
        return row["gpu_class"], row["gpu_count"]

    assert await declare(None, 0) == (None, 0)
    assert await declare("h100", 8) == ("h100", 8)
    assert await declare(None, 0) == ("h100", 8)
    assert await declare("h200", 8) == ("h200", 8)
    await world.pool.execute("update pools set cordoned_at = now(), cordon_reason = 'fan'")
    assert await declare("h200", 4) == ("h200", 4)
    assert await world.pool.fetchval("select cordon_reason from pools") == "fan"
