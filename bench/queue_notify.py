"""How many transactions a second can notify: Postgres lets them commit one at a time.

A transaction that has called pg_notify holds one lock of the whole server from just before its commit until the commit
is on disk (PreCommit_Notify in src/backend/commands/async.c), so such commits cannot share a flush. What a flush takes
is a matter of the disk: here every commit waits `FLUSH_US` longer (commit_delay), as a network disk's would.
"""

import asyncio
import time

import asyncpg
from fusion_local.stack import Stack

CLIENTS = 16
FLUSH_US = 2000
STATEMENTS = {
    "plain": "insert into notified (v) values ('x')",
    "notifying": "with written as (insert into notified (v) values ('x')) select pg_notify('bench', 'x')",
}


async def commits_per_s(stack: Stack, seconds: float) -> dict[str, float]:
    """Of `CLIENTS` connections that insert a row each time, without a notification and with one."""
    pool = await asyncpg.create_pool(stack.database_url("postgres"), min_size=CLIENTS, max_size=CLIENTS)
    await pool.execute("create table notified (id bigint generated always as identity primary key, v text)")
    await _delay(pool, FLUSH_US)
    found = {name: await _rate(pool, sql, seconds) for name, sql in STATEMENTS.items()}
    await _delay(pool, 0)
    await pool.close()
    return found


async def _delay(pool: "asyncpg.Pool[asyncpg.Record]", microseconds: int) -> None:
    """Every commit waits, however few others there are."""
    await pool.execute(f"alter system set commit_delay = {microseconds}")
    await pool.execute("alter system set commit_siblings = 0")
    await pool.execute("select pg_reload_conf()")
    await asyncio.sleep(0.5)


async def _rate(pool: "asyncpg.Pool[asyncpg.Record]", sql: str, seconds: float) -> float:
    until = time.perf_counter() + seconds

    async def insert() -> int:
        count = 0
        while time.perf_counter() < until:
            await pool.execute(sql)
            count += 1
        return count

    return sum(await asyncio.gather(*(insert() for _ in range(CLIENTS)))) / seconds
