"""Queued jobs in a pool of their own, and services with short times, one database a test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from arq.connections import ArqRedis
from fusion_core.db import attempts, jobs, sweep, webhooks
from fusion_core.db.attempts import Attempt, Claimer, NewShard
from fusion_core.db.pool import Pool, connect_pool, queries
from fusion_core.db.rows import JobRow
from fusion_core.job_spec import IngestSpec
from fusion_core.settings import CommonSettings
from fusion_core.trainer_protocol import FileEntry
from fusion_core.webhooks import EVENT_TYPES
from fusion_local.stack import Stack
from fusion_orchestrator.doorbell import QUEUE_PREFIX, connect_redis
from fusion_orchestrator.settings import OrchestratorSettings

from .webhook_receiver import Receiver


class World:
    """Ingest jobs, the simplest kind, in a pool of their own, since tests share one Valkey."""

    def __init__(self, pool: Pool, redis: ArqRedis) -> None:
        self.pool = pool
        self.redis = redis
        self.job_pool = f"pool-{uuid4().hex[:8]}"
        self.queue = QUEUE_PREFIX + self.job_pool
        self.claimer = Claimer(worker_id=uuid4(), pool=self.job_pool)
        self._account_id: UUID | None = None

    async def account(self) -> UUID:
        if self._account_id is None:
            self._account_id = (await queries.insert_account(self.pool, name="account"))["id"]
        return self._account_id

    async def queue_job(self) -> JobRow:
        account_id = await self.account()
        dataset = await queries.insert_dataset(self.pool, account_id=account_id, name=uuid4().hex)
        new = jobs.NewJob(
            account_id=account_id,
            type="ingest",
            spec=IngestSpec(uploads=(("tmp/x", "x.jsonl"),)),
            pool=self.job_pool,
            dataset_id=dataset["id"],
        )
        async with self.pool.acquire() as conn:
            return (await jobs.submit_job(conn, new))[0]

    async def claim(self, job: JobRow, ttl_s: float = 20) -> Attempt:
        """Tried again for a moment, because a replica that rings for the job holds its row just then."""
        attempt_id = uuid4()
        for _ in range(50):
            async with self.pool.acquire() as conn:
                claimed = await attempts.claim(conn, self.claimer, job.id, job.lease_epoch, attempt_id, ttl_s)
            if claimed is not None:
                return Attempt(job.id, claimed.lease_epoch, attempt_id)
            await asyncio.sleep(0.02)
        raise AssertionError(f"job {job.id} cannot be claimed")

    async def lose(self, attempt: Attempt) -> JobRow:
        """The attempt's lease ends and is reclaimed."""
        await self.expire(attempt)
        async with self.pool.acquire() as conn:
            reclaimed = await sweep.reclaim(conn, attempt.job_id, attempt.epoch)
        assert reclaimed is not None
        return reclaimed

    async def finish(self, job: JobRow) -> None:
        """The dataset becomes ready: claimed, read, completed."""
        attempt = await self.claim(job)
        shard = NewShard(split="train", ordinal=0, s3_key=uuid4().hex, rows=2, file=FileEntry("x", 1, "0" * 64))
        async with self.pool.acquire() as conn:
            await attempts.complete_ingest(conn, attempt, [shard], rows=2, heldout_rows=0)

    async def webhook(self, url: str, *event_types: str) -> Any:
        async with self.pool.acquire() as conn:
            return await webhooks.create_endpoint(
                conn, await self.account(), url=url, event_types=event_types or EVENT_TYPES, description=""
            )

    async def expire(self, attempt: Attempt) -> None:
        """Let the lease's time pass."""
        await self.pool.execute(
            "update jobs set lease_expires_at = now() - interval '1 s' where id = $1", attempt.job_id
        )

    async def swept_without_a_gap(self) -> None:
        """As if sweeps had gone on for long."""
        await self.pool.execute("insert into sweeps (last_sweep_at, reclaim_after) values (now(), now())")

    async def rings(self) -> list[str]:
        """The ids in the pool's queue, in the order in which workers take them."""
        return [member.decode() for member in await self.redis.zrange(self.queue, 0, -1)]

    async def count(self, sql: str, *values: object) -> int:
        value: int = await self.pool.fetchval(sql, *values)
        return value


@pytest.fixture
async def world(database_url: str, redis_url: str) -> AsyncIterator[World]:
    pool = await connect_pool(database_url, application_name="test", max_size=5)
    redis = connect_redis(redis_url)
    yield World(pool, redis)
    await redis.aclose()
    async with asyncio.timeout(10):
        await pool.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
def settings(stack: Stack, database_name: str, common_settings: CommonSettings, redis_url: str) -> OrchestratorSettings:
    """With the orchestrator's rights in the database. Sweeps are slow here unless a test makes them fast, so that what
    NOTIFY does is seen."""
    own = msgspec.structs.asdict(common_settings)
    own["database_url"] = stack.database_url(database_name, "orchestrator")
    return OrchestratorSettings(**own, redis_url=redis_url, sweep_s=30, sweep_gap_s=90)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Wait until an async condition holds, or fail with what it said last."""

    async def wait(condition: Callable[[], Awaitable[Any]], within_s: float = 10) -> None:
        last: Any = None
        try:
            async with asyncio.timeout(within_s):
                while not (last := await condition()):  # noqa: ASYNC110 other processes set no event
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s; last: {last!r}") from None

    return wait
