"""Whoever falls silent in the middle of a transaction, paused or cut off, holds a job's row only for so long."""

import asyncio
from typing import Any

import asyncpg
import pytest
from fusion_core.db import attempts, pool, sweep
from fusion_core.db.attempts import fenced


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_IN_TRANSACTION_S", 0.3)


async def test_a_paused_worker_does_not_hold_its_job_against_the_sweep(world: Any, clocked_database_url: str) -> None:
    attempt = await world.running()
    paused = await pool.connect_pool(clocked_database_url, application_name="paused", max_size=1)
    try:
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as ended:
            async with paused.acquire() as connection, fenced(connection, attempt):
                await world.expire(attempt.job_id)
                async with world.pool.acquire() as other, asyncio.timeout(30):
                    while not await sweep.reclaim_expired(other):  # noqa: ASYNC110 - it ends in another process
                        await asyncio.sleep(0.05)
                assert (await world.job(attempt.job_id)).retries == 1
                await attempts.queries.lock_job(connection, job_id=attempt.job_id)
        assert isinstance(ended.value, pool.POSTGRES_AWAY), "a worker that goes on asks again"
    finally:
        await asyncio.wait_for(paused.close(), 10)
