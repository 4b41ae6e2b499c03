"""Calls to Postgres that outlast an outage."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from fusion_core.db.pool import POSTGRES_AWAY, Connection, Pool

log = structlog.get_logger()
T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


async def with_postgres(pool: Pool, call: Callable[[Connection], Awaitable[T]], *, for_s: float) -> T:
    """Run `call` on a connection, again and again while Postgres is away. The call must be repeatable.

    Raises the last error once `for_s` seconds have passed, and LeaseLostError and the like at once.
    """
    until = time.monotonic() + for_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            async with pool.acquire(timeout=10) as connection:
                return await call(connection)
        except POSTGRES_AWAY as error:
            if time.monotonic() + pause > until:
                raise
            log.warning("postgres_unreachable", error=str(error), again_in_s=round(pause, 1))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
