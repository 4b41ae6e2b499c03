"""Connections to Postgres, and the named queries of `sql/` as `queries`."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosql
import asyncpg
import msgspec

if TYPE_CHECKING:  # asyncpg's classes are generic in its stubs only
    Pool = asyncpg.Pool[asyncpg.Record]
    OwnConnection = asyncpg.Connection[asyncpg.Record]
    Connection = OwnConnection | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    OwnConnection = Connection = asyncpg.Connection

STATEMENT_TIMEOUT_S = 30.0
_PREPARED_STATEMENTS = 100  # kept by a connection
# A process that is paused or cut off in the middle of a transaction holds the job's row: nobody could reclaim it.
IDLE_IN_TRANSACTION_S = 15.0

# What a call raises while Postgres is away, goes away, is full of connections or has just come back. There is one for a
# connection that ended between two messages of a statement (InternalClientError), and one for a worker that came before
# its release's migration (InvalidSchemaNameError, worker_statements.py).
POSTGRES_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidSchemaNameError,
)

# aiosql makes one coroutine a named query (an async generator where it answers many rows), with named parameters.
queries: Any = aiosql.from_path(Path(__file__).parent / "sql", "asyncpg")


async def prepare_connection(connection: Connection) -> None:
    """jsonb travels as plain Python objects or msgspec Structs."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: msgspec.json.encode(value).decode(),
        decoder=msgspec.json.decode,
    )


async def connect_pool(
    url: str,
    *,
    application_name: str,
    min_size: int = 1,
    max_size: int = 10,
    prepared: bool = True,
    statement_timeout_s: float = STATEMENT_TIMEOUT_S,
    connection_class: type[OwnConnection] = asyncpg.Connection,
) -> Pool:
    """Open a pool whose every statement, and every pause within a transaction, has a deadline.

    A statement that Postgres never answers costs the deadline twice, since its cancellation has one, too.
    Not `prepared`, a connection keeps no statement from one transaction to the next, since a pooler may give it another
    session. Raises OSError or asyncpg.PostgresError.
    """
    return await asyncpg.create_pool(
        url,
        min_size=min_size,
        max_size=max_size,
        command_timeout=statement_timeout_s,
        timeout=10,
        statement_cache_size=_PREPARED_STATEMENTS if prepared else 0,
        server_settings={"application_name": application_name},
        init=_prepare_pooled,
        reset=_leave_transaction,
        connection_class=connection_class,
    )


async def close_pool(pool: Pool, within_s: float = 5.0) -> None:
    """Close every connection: politely, and past `within_s` at once, as a peer that fell silent demands."""
    try:
        async with asyncio.timeout(within_s):
            await pool.close()
    except TimeoutError:
        pool.terminate()


async def _prepare_pooled(connection: Connection) -> None:
    await prepare_connection(connection)
    await _limit_pauses(connection)


async def _limit_pauses(connection: Connection) -> None:
    """By a statement: poolers refuse to start a session with a parameter that they do not track."""
    await connection.execute(f"set idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_S * 1000:.0f}")


async def _leave_transaction(connection: Connection) -> None:
    """Before a connection goes back to its pool. Nothing of ours leaves other traces (settings are `set local`, locks
    end with their transaction), so the usual reset, a round trip after every query, is saved."""
    if connection.is_in_transaction():
        await connection.reset()
        await _limit_pauses(connection)


async def connect(
    url: str,
    *,
    application_name: str,
    statement_timeout_s: float = STATEMENT_TIMEOUT_S,
    connection_class: type[OwnConnection] = asyncpg.Connection,
) -> OwnConnection:
    """One connection outside any pool: for LISTEN, migrations, retention and the operator's command."""
    connection = await asyncpg.connect(
        url,
        timeout=10,
        command_timeout=statement_timeout_s,
        server_settings={"application_name": application_name},
        connection_class=connection_class,
    )
    await prepare_connection(connection)
    return connection
