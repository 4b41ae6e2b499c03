"""A small world of rows over the real schema: accounts, a base model, ready datasets, jobs, attempts."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from fusion_core import s3_keys
from fusion_core.db import attempts, jobs
from fusion_core.db.attempts import Attempt, Claimer, NewModel, NewShard
from fusion_core.db.checkpoints import NewCheckpoint
from fusion_core.db.pool import Pool, connect_pool, queries
from fusion_core.db.rows import JobRow
from fusion_core.growth_plan import plan_growth
from fusion_core.job_spec import Hyperparams, IngestSpec, TrainSpec
from fusion_core.money import DEFAULT_PRICES, estimate_train
from fusion_core.trainer_protocol import FileEntry, Manifest

from tests.clock import Clock
from tests.inputs import CONFIG, add_base_model, add_dataset

SHA = "0" * 64
MANIFEST = Manifest((FileEntry("config.json", 10, SHA),))
HYPERPARAMS = Hyperparams(turns=2, cycles=2, steps_per_cycle=5)


class World:
    """Makes rows through the product's own SQL; one worker, pool `test`."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.clock = Clock(pool)
        self.claimer = Claimer(worker_id=uuid4(), pool="test")

    async def account(self) -> UUID:
        record = await queries.insert_account(self.pool, name="account")
        account_id: UUID = record["id"]
        return account_id

    async def base_model(self) -> UUID:
        return await add_base_model(self.pool)

    async def dataset(self, account_id: UUID, *, ready: bool = True) -> UUID:
        if ready:
            return await add_dataset(self.pool, account_id)
        dataset_id: UUID = (await queries.insert_dataset(self.pool, account_id=account_id, name="data"))["id"]
        return dataset_id

    async def new_train(self, account_id: UUID | None = None, key: str | None = None) -> jobs.NewJob:
        account_id = account_id or await self.account()
        plan = plan_growth(CONFIG)
        return jobs.NewJob(
            account_id=account_id,
            type="train",
            spec=TrainSpec(hyperparams=HYPERPARAMS, growth_plan=plan, base_model_name="tiny"),
            pool="test",
            dataset_id=await self.dataset(account_id),
            base_model_id=await self.base_model(),
            idempotency_key=key or uuid4().hex,
            request_sha256=b"\0" * 32,
            price_version=1,
            estimate=estimate_train(DEFAULT_PRICES, plan.params_before, plan.params_after, HYPERPARAMS.training_tokens),
        )

    async def train(self) -> JobRow:
        async with self.pool.acquire() as conn:
            job, created = await jobs.submit_job(conn, await self.new_train())
        assert created
        return job

    async def ingest(self) -> JobRow:
        account_id = await self.account()
        new = jobs.NewJob(
            account_id=account_id,
            type="ingest",
            spec=IngestSpec(uploads=(("tmp/x", "x.jsonl"),)),
            pool="test",
            dataset_id=await self.dataset(account_id, ready=False),
        )
        async with self.pool.acquire() as conn:
            return (await jobs.submit_job(conn, new))[0]

    async def claim(self, job: JobRow, ttl_s: float = 20) -> Attempt:
        attempt_id = uuid4()
        async with self.pool.acquire() as conn:
            claimed = await attempts.claim(conn, self.claimer, job.id, job.lease_epoch, attempt_id, ttl_s)
        assert claimed is not None
        return Attempt(job.id, claimed.lease_epoch, attempt_id)

    async def running(self, ttl_s: float = 20) -> Attempt:
        return await self.claim(await self.train(), ttl_s)

    async def job(self, job_id: UUID) -> JobRow:
        async with self.pool.acquire() as conn:
            return JobRow.of(await queries.lock_job(conn, job_id=job_id))

    async def expire(self, job_id: UUID) -> None:
        """Let the lease's time pass."""
        expires_at = await self.pool.fetchval("select lease_expires_at from jobs where id = $1", job_id)
        await self.clock.reach(expires_at + timedelta(seconds=1))

    async def be_due(self, job_id: UUID) -> None:
        """Let the wait before the next claim pass."""
        await self.clock.reach(await self.pool.fetchval("select not_before from jobs where id = $1", job_id))

    async def ledger(self, job_id: UUID) -> list[int]:
        records = await self.pool.fetch("select amount_microusd from ledger where job_id = $1", job_id)
        return [record["amount_microusd"] for record in records]

    async def event_types(self, job_id: UUID) -> list[str]:
        events = await jobs.list_events(self.pool, job_id, after=0, limit=1000)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        return [event["type"] for event in events]

    @staticmethod
    def new_checkpoint(attempt: Attempt, step: int) -> NewCheckpoint:
        prefix = s3_keys.checkpoint(s3_keys.attempt(attempt.job_id, attempt.epoch, attempt.attempt_id), step)
        return NewCheckpoint(step=step, turn_end=False, s3_prefix=prefix, manifest=MANIFEST, format_version=1)

    @staticmethod
    def new_model(attempt: Attempt) -> NewModel:
        prefix = s3_keys.export(s3_keys.attempt(attempt.job_id, attempt.epoch, attempt.attempt_id))
        return NewModel(name="grown", params=2, config=CONFIG, s3_prefix=prefix, manifest=MANIFEST)

    @staticmethod
    def new_shard(attempt: Attempt) -> NewShard:
        key = f"{s3_keys.shards(s3_keys.attempt(attempt.job_id, attempt.epoch, attempt.attempt_id))}/train-00000.jsonl"
        return NewShard(split="train", ordinal=0, s3_key=key, rows=3, file=FileEntry("train-00000.jsonl", 9, SHA))


@pytest.fixture
async def world(clocked_database_url: str) -> AsyncIterator[World]:
    pool = await connect_pool(clocked_database_url, application_name="test", max_size=20)
    yield World(pool)
    await pool.close()


@pytest.fixture
def world_in_own_loop(clocked_database_url: str) -> Iterator[tuple[World, asyncio.Runner]]:
    """For synchronous drivers such as hypothesis: a world and the loop it lives in."""
    with asyncio.Runner() as runner:
        pool = runner.run(connect_pool(clocked_database_url, application_name="test"))
        yield World(pool), runner
        runner.run(pool.close())
