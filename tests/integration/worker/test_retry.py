"""A worker's calls to Postgres outlast whatever ends their connections, and nothing else."""

import asyncio
import random

import asyncpg
import pytest
from fusion_core.db.pool import Connection, connect, connect_pool, queries
from fusion_worker.retry import with_postgres

NAME = "fusion-worker-retry"


async def _end_connections(url: str, stop: asyncio.Event) -> None:
    connection = await connect(url, application_name="test")
    while not stop.is_set():
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1"
            " and datname = current_database()",
            NAME,
        )
        await asyncio.sleep(random.uniform(0, 0.02))
    await connection.close()


async def test_calls_outlast_connections_that_end_at_any_moment(database_url: str) -> None:
    """Between two messages of one statement too, where asyncpg raises InternalClientError."""
    pool = await connect_pool(database_url, application_name=NAME)
    stop = asyncio.Event()
    ending = asyncio.create_task(_end_connections(database_url, stop))

    async def read(connection: Connection) -> int:
        return (await queries.current_prices(connection))["version"]

    loop = asyncio.get_running_loop()
    until = loop.time() + 8
    asyncio.get_running_loop().call_later(8, stop.set)
    versions: set[int] = set()
    while loop.time() < until:
        versions.update(await asyncio.gather(*(with_postgres(pool, read, for_s=30) for _ in range(4))))
    await ending
    await pool.close()
    assert versions == {1}


async def test_a_wrong_statement_is_raised_at_once(database_url: str) -> None:
    pool = await connect_pool(database_url, application_name=NAME)

    async def wrong(connection: Connection) -> None:
        await connection.execute("select nonsense")

    with pytest.raises(asyncpg.UndefinedColumnError):
        await with_postgres(pool, wrong, for_s=30)
    await pool.close()
