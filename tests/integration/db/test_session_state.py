"""Behind a pooler in transaction mode every transaction may run in another session, which knows nothing of the last."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from fusion_core.db import attempts, checkpoints, jobs, sweep
from fusion_core.db.attempts import Attempt, WorkerEvent
from fusion_core.db.pool import OwnConnection, connect_pool, prepare_connection, queries
from fusion_core.db.rows import JobRow

SESSIONS = 3


class Forgetful:
    """Each statement, or each transaction, on the next of several connections, which forgets its session afterwards."""

    def __init__(self, connections: list[OwnConnection]) -> None:
        self._next = cycle(connections)
        self._held: OwnConnection | None = None
        self.used: set[int] = set()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        if self._held is not None:
            async with self._held.transaction():
                yield
            return
        self._held = next(self._next)
        try:
            async with self._held.transaction():
                yield
        finally:
            held, self._held = self._held, None
            await held.execute("discard all")

    async def _run(self, method: str, *arguments: Any) -> Any:
        connection = self._held or next(self._next)
        self.used.add(connection.get_server_pid())
        answer = await getattr(connection, method)(*arguments)
        if self._held is None:
            await connection.execute("discard all")
        return answer

    async def fetch(self, *arguments: Any) -> Any:
        return await self._run("fetch", *arguments)

    async def fetchrow(self, *arguments: Any) -> Any:
        return await self._run("fetchrow", *arguments)

    async def fetchval(self, *arguments: Any) -> Any:
        return await self._run("fetchval", *arguments)

    async def execute(self, *arguments: Any) -> Any:
        return await self._run("execute", *arguments)


@pytest.fixture
async def conn(clocked_database_url: str) -> AsyncIterator[Any]:
    connections = [await asyncpg.connect(clocked_database_url, statement_cache_size=0) for _ in range(SESSIONS)]
    for connection in connections:
        await prepare_connection(connection)
    yield Forgetful(connections)
    for connection in connections:
        await connection.close()


async def test_a_jobs_life_needs_no_session(world: Any, conn: Any) -> None:
    job, created = await jobs.submit_job(conn, await world.new_train())
    assert created
    (due,) = await sweep.due_rings(conn, depth=8, again_s=10)
    assert due.job_id == job.id
    lost = await claim(conn, world, job, 0)
    await world.expire(job.id)
    await sweep.begin_sweep(conn, ttl_s=0, gap_s=3600)
    assert [one.id for one in await sweep.reclaim_expired(conn)] == [job.id]
    attempt = await claim(conn, world, job, 1)
    assert (await attempts.renew(conn, attempt, 20)) == attempts.Renewal(cancel=False, stop=False)
    assert await attempts.append_events(conn, attempt, [WorkerEvent(1, "metrics", {"step": 1, "loss": 1.0})]) == 1
    await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 5))
    assert [one.step for one in await checkpoints.readable_checkpoints(conn, job.id)] == [5]
    await jobs.stop_job(conn, job.account_id, job.id)
    assert (await attempts.obey(conn, attempt)).state == "stopped"
    await jobs.resume_job(conn, job.account_id, job.id)
    attempt = await claim(conn, world, job, 2)
    done = await attempts.complete_training(conn, attempt, world.new_model(attempt), {})
    assert done.state == "completed"
    with pytest.raises(attempts.LeaseLostError):
        await attempts.renew(conn, lost, 20)
    found = await jobs.find_jobs(conn, job.account_id, jobs.JobFilter(type="train"), limit=10)
    assert [one.id for one in found] == [job.id]
    assert len(conn.used) == SESSIONS


async def claim(conn: Any, world: Any, job: JobRow, epoch: int) -> Attempt:
    await world.be_due(job.id)
    attempt_id = uuid4()
    claimed = await attempts.claim(conn, world.claimer, job.id, epoch, attempt_id, 20)
    assert claimed is not None
    return Attempt(job.id, claimed.lease_epoch, attempt_id)


async def test_a_pool_that_prepares_nothing_leaves_nothing_in_its_sessions(database_url: str) -> None:
    pool = await connect_pool(database_url, application_name="test", max_size=1, prepared=False)
    await queries.outbox_depth(pool)
    assert await pool.fetchval("select count(*) from pg_prepared_statements where name <> ''") == 0
    await pool.close()
