"""Calls to Postgres that outlast an outage."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog
from fusion_core.db.pool import POSTGRES_AWAY, Connection, Pool

log = structlog.get_logger()
T = TypeVar("T")

_PATIENCE_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


@asynccontextmanager
async def connection_within(pool: Pool, patience_s: float) -> AsyncIterator[Connection]:
    """A connection and what is done with it, each within `patience_s`; one that fell silent is dropped with all others.

    Given back it would have to be asked first to cancel what it does, over a way that is silent, too.
    """
    async with pool.acquire(timeout=patience_s) as connection:
        try:
            async with asyncio.timeout(patience_s):
                yield connection
        except (TimeoutError, asyncio.CancelledError):
            connection.terminate()
            await pool.expire_connections()
            raise


async def with_postgres(pool: Pool, call: Callable[[Connection], Awaitable[T]], *, for_s: float) -> T:
    """Run `call` on a connection, again and again while Postgres is away. The call must be repeatable.

    Raises the last error once `for_s` seconds have passed, and LeaseLostError and the like at once.
    """
    until = time.monotonic() + for_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            async with connection_within(pool, _PATIENCE_S) as connection:
                return await call(connection)
        except POSTGRES_AWAY as error:
            if time.monotonic() + pause > until:
                raise
            log.warning("postgres_unreachable", error=str(error), again_in_s=round(pause, 1))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
