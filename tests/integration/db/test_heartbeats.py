"""Heartbeats are what a fleet writes all day: they write no index."""

from typing import Any

from fusion_core.db import attempts, sweep
from fusion_core.db.pool import queries

UPDATES = (
    "select n_tup_upd - n_tup_hot_upd as indexed, n_tup_hot_upd as hot from pg_stat_user_tables where relname = $1"
)


async def updates_of(conn: Any, table: str) -> tuple[int, int]:
    """How many updates so far wrote the table's indexes, and how many did not."""
    await conn.execute("select pg_stat_force_next_flush()")
    row = await conn.fetchrow(UPDATES, table)
    return row["indexed"], row["hot"]


async def test_renewing_a_lease_writes_no_index(world: Any) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        indexed, hot = await updates_of(conn, "jobs")
        for _ in range(10):
            await attempts.renew(conn, attempt, 20)
        assert await updates_of(conn, "jobs") == (indexed, hot + 10)


async def test_an_idle_worker_that_is_seen_writes_no_index(world: Any) -> None:
    async with world.pool.acquire() as conn:
        worker = {"name": "w", "pool": "test", "spec_version": 1, "capabilities": [], "version": "1", "gpus": 1}
        await queries.register_worker(conn, id=world.claimer.worker_id, **worker)
        indexed, hot = await updates_of(conn, "workers")
        for _ in range(10):
            await queries.worker_seen(conn, id=world.claimer.worker_id, state="idle", job_id=None)
        assert await updates_of(conn, "workers") == (indexed, hot + 10)


async def test_expired_leases_are_found_oldest_first_without_an_index_on_their_expiry(world: Any) -> None:
    held = [await world.running() for _ in range(3)]
    for attempt, seconds in ((held[2], 9), (held[0], 5)):
        await world.pool.execute(
            "update jobs set lease_expires_at = now() - make_interval(secs => $2) where id = $1",
            attempt.job_id,
            seconds,
        )
    async with world.pool.acquire() as conn:
        assert [job.id for job in await sweep.reclaim_expired(conn)] == [held[2].job_id, held[0].job_id]
