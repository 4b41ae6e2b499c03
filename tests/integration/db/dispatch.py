"""Queues of many jobs, and a fleet that works them off: what the tests of dispatch have in common."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt
from fusion_core.db.pool import Connection
from fusion_core.db.rows import JobRow

COPY = """
insert into jobs (account_id, type, idempotency_key, request_sha256, spec_version, spec, base_model_id, dataset_id,
    price_version, estimate, pool, priority, created_at)
select account_id, type, gen_random_uuid()::text, request_sha256, spec_version, spec, base_model_id, dataset_id,
    price_version, estimate, pool, priority, created_at + n * interval '1 microsecond'
from jobs cross join generate_series(1, $2) n where id = $1
returning id
"""


async def queue(world: Any, count: int, *, priority: int = 0, limit: int | None = None) -> tuple[UUID, list[UUID]]:
    """A new account, which may run `limit` jobs at once, and its `count` queued jobs, the oldest first."""
    first = await world.train()
    if priority:
        await world.pool.execute("update jobs set priority = $2 where id = $1", first.id, priority)
    if limit is not None:
        await world.pool.execute("update accounts set max_running_jobs = $2 where id = $1", first.account_id, limit)
    others = await world.pool.fetch(COPY, first.id, count - 1)
    return first.account_id, [first.id, *sorted(record["id"] for record in others)]


async def claim_next(world: Any, conn: Connection) -> JobRow | None:
    return await attempts.claim_next(conn, world.claimer, uuid4(), 20)


async def end(conn: Connection, job: JobRow) -> None:
    """The job's attempt is over."""
    assert job.attempt_id is not None
    await attempts.fail(conn, Attempt(job.id, job.lease_epoch, job.attempt_id), "nonfinite_loss", "enough")


async def ends_before_start(world: Any, job_id: UUID, workers: int) -> int:
    """How many jobs of a fleet of `workers` end, one after the other, before the job is started."""
    held: list[JobRow] = []
    async with world.pool.acquire() as conn:
        for ended in range(10_000):
            while len(held) < workers and (claimed := await claim_next(world, conn)) is not None:
                held.append(claimed)
            if any(job.id == job_id for job in held):
                return ended
            await end(conn, held.pop(0))
    raise AssertionError("never started")


async def pages_read(conn: Connection, sql: str, *arguments: Any) -> int:
    """Pages that one call of a query touches, in memory or not."""
    await conn.fetch(sql, *arguments)  # plans and catalogs are read once
    (explained,) = json.loads(await conn.fetchval(f"explain (analyze, buffers, format json) {sql}", *arguments))
    plan: Mapping[str, int] = explained["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
