"""The tests' clock moves the time of every statement, default, trigger and view at once."""

import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import fusion_core.db
import pytest
from fusion_core.db import attempts, sweep
from fusion_core.db.attempts import LeaseLostError


async def test_moving_the_clock_expires_a_lease(world: Any) -> None:
    attempt = await world.running(ttl_s=20)
    async with world.pool.acquire() as conn:
        await world.clock.advance(19.9)
        assert await sweep.reclaim_expired(conn) == []
        await world.clock.advance(0.2)
        assert [job.id for job in await sweep.reclaim_expired(conn)] == [attempt.job_id]
        with pytest.raises(LeaseLostError):
            await attempts.renew(conn, attempt, 20)


async def test_time_stands_still_for_every_session_until_it_is_moved(world: Any) -> None:
    async with world.pool.acquire() as one, world.pool.acquire() as other:
        before = await one.fetchval("select now()")
        await one.execute("select pg_sleep(0.01)")
        assert await other.fetchval("select now()") == before
        await world.clock.advance(3600)
        times = [(await conn.fetchval("select now()") - before).total_seconds() for conn in (one, other)]
    assert times == [3600, 3600]


async def test_views_defaults_and_triggers_follow_the_clock(world: Any) -> None:
    await world.clock.advance(86_400)
    attempt = await world.running(ttl_s=20)  # the view: not_before, a default of the new time, is due
    await world.clock.advance(10)
    async with world.pool.acquire() as conn:
        await conn.execute("update jobs set gpus = 1")
        job = await attempts.release(conn, attempt)
        created_at = await conn.fetchval("select created_at from jobs where id = $1", job.id)
    assert job.gpu_seconds == 10
    assert (await world.clock.now() - created_at).total_seconds() == 10


async def test_the_wait_after_a_crash_is_over_when_the_clock_says_so(world: Any) -> None:
    async with world.pool.acquire() as conn:
        crashed = await attempts.crash(conn, await world.running(), "trainer_crashed", "no")
        again = await attempts.crash(conn, await world.claim(crashed), "trainer_crashed", "no")
        claim = (conn, world.claimer, again.id, again.lease_epoch, uuid4(), 20)
        assert await attempts.claim(*claim) is None
        await world.clock.advance(5)
        assert await attempts.claim(*claim) is not None


def test_sql_takes_the_time_from_now_alone() -> None:
    other = re.compile(
        r"pg_catalog\.now|current_(?:date|time|timestamp)|local(?:time|timestamp)|(?:clock|statement|transaction)_timestamp",
        re.IGNORECASE,
    )
    files = list(Path(fusion_core.db.__file__).parent.rglob("*.sql"))
    assert files
    assert [(file.name, found) for file in files for found in other.findall(file.read_text())] == []
