"""Jobs with real inputs in S3, and daemons with short times that run the stub trainer on them."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psutil
import pytest
from fusion_core import s3_keys
from fusion_core.contraction_plan import plan_contraction
from fusion_core.db import jobs
from fusion_core.db.pool import Pool, connect_pool, queries
from fusion_core.db.rehearsal_pools import Base, ensure_sampled
from fusion_core.db.rows import JobRow
from fusion_core.growth_plan import plan_growth
from fusion_core.job_spec import (
    ContractHyperparams,
    ContractSpec,
    CustomerSpec,
    FinetuneHyperparams,
    FinetuneSpec,
    Hyperparams,
    IngestSpec,
    TrainSpec,
)
from fusion_core.money import DEFAULT_PRICES, Estimate, estimate_contract, estimate_finetune, estimate_train
from fusion_core.settings import CommonSettings
from fusion_core.storage import Storage
from fusion_local.processes import Processes, base_environment
from fusion_local.stack import Stack
from fusion_worker.daemon import Daemon
from fusion_worker.settings import WorkerSettings

from tests.inputs import CONFIG, add_base_model, add_stored_dataset

STUB = Path(__file__).with_name("stub_trainer.py")
POOL = "test"
QUICK: dict[str, str | float] = {
    "pool": POOL,
    "device": "cpu",
    "lease_ttl_s": 3,
    "heartbeat_s": 0.5,
    "idle_poll_s": 0.3,
    "drain_grace_s": 20,
    "isolation_limit_s": 30,
    "min_free_bytes": 0,
    "trainer_command": shlex.join([sys.executable, str(STUB)]),
}
DEADLINE_S = 30.0


async def until(reached: Callable[[], Awaitable[bool]], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll the condition until it holds. Raises AssertionError past the deadline."""
    end = asyncio.get_running_loop().time() + deadline_s
    while not await reached():
        assert asyncio.get_running_loop().time() < end, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(0.05)


class Site:
    """One database and one bucket: rows through the product's own SQL, objects that really are there."""

    def __init__(self, pool: Pool, storage: Storage) -> None:
        self.pool = pool
        self.storage = storage

    async def _account(self) -> UUID:
        account_id: UUID = (await queries.insert_account(self.pool, name="account"))["id"]
        return account_id

    async def base_model(self) -> UUID:
        return await add_base_model(self.pool, self.storage)

    async def _dataset(self, account_id: UUID) -> UUID:
        return await add_stored_dataset(self.pool, self.storage, account_id)

    async def train(self, mode: str = "normal", base_model_id: UUID | None = None) -> UUID:
        """A queued job of four steps; `mode` says what the stub trainer does."""
        hyperparams = Hyperparams(turns=1, cycles=1, steps_per_cycle=4, output_name=f"{mode}-model")
        plan = plan_growth(CONFIG)
        spec = TrainSpec(hyperparams=hyperparams, growth_plan=plan, base_model_name="tiny")
        estimate = estimate_train(DEFAULT_PRICES, plan.params_before, plan.params_after, hyperparams.training_tokens)
        base_model_id = base_model_id or await self.base_model()
        return await self._customer_job("train", spec, estimate, base_model_id=base_model_id)

    async def finetune(self) -> UUID:
        spec = FinetuneSpec(hyperparams=FinetuneHyperparams(steps=4), params=2, base_model_name="tiny")
        estimate = estimate_finetune(DEFAULT_PRICES, 2, 4 * 256)
        return await self._customer_job("finetune", spec, estimate, base_model_id=await self.base_model())

    async def contract(self, source: JobRow) -> UUID:
        """Of the model that a completed job made, without a dataset."""
        plan = plan_contraction(CONFIG, 0.5)
        spec = ContractSpec(hyperparams=ContractHyperparams(), contraction_plan=plan, base_model_name="grown")
        estimate = estimate_contract(DEFAULT_PRICES, plan.params_before)
        return await self._customer_job(
            "contract", spec, estimate, account_id=source.account_id, source_model_id=source.output_model_id
        )

    async def sample(self, base: Base) -> UUID:
        """The internal job that samples a base's rehearsal pool."""
        async with self.pool.acquire() as connection:
            job = await ensure_sampled(connection, base, config=CONFIG, rows=1, pool=POOL)
        assert job is not None
        return job.id

    async def _customer_job(
        self, job_type: str, spec: CustomerSpec, estimate: Estimate, account_id: UUID | None = None, **inputs: Any
    ) -> UUID:
        account_id = account_id or await self._account()
        if job_type != "contract":
            inputs["dataset_id"] = await self._dataset(account_id)
        new = jobs.NewJob(
            account_id=account_id,
            type=job_type,
            spec=spec,
            pool=POOL,
            idempotency_key=uuid4().hex,
            request_sha256=b"\0" * 32,
            price_version=1,
            estimate=estimate,
            **inputs,
        )
        return await self._submit(new)

    async def ingest(self, registered: bytes, filename: str = "rows.jsonl") -> tuple[UUID, str]:
        """A queued ingest of one upload, registered with these bytes; answers the dataset and the upload's key."""
        account_id, upload_id = await self._account(), uuid4()
        key = s3_keys.upload(account_id, upload_id, filename)
        await self.storage.put_bytes(key, registered)
        head = await self.storage.head(key)
        assert head is not None
        await queries.insert_upload(
            self.pool,
            id=upload_id,
            account_id=account_id,
            filename=filename,
            content_type="application/jsonl",
            s3_key=key,
            size=None,
            part_size=None,
            multipart_id=None,
            expires_s=60,
        )
        dataset_id: UUID = (await queries.insert_dataset(self.pool, account_id=account_id, name="rows"))["id"]
        await queries.insert_dataset_upload(
            self.pool, upload_id=upload_id, dataset_id=dataset_id, ordinal=0, size=head.size, etag=head.etag
        )
        spec = IngestSpec(uploads=((key, filename),))
        await self._submit(
            jobs.NewJob(account_id=account_id, type="ingest", spec=spec, pool=POOL, dataset_id=dataset_id)
        )
        return dataset_id, key

    async def _submit(self, new: jobs.NewJob) -> UUID:
        async with self.pool.acquire() as connection:
            job, created = await jobs.submit_job(connection, new)
        assert created
        return job.id

    async def job(self, job_id: UUID) -> JobRow:
        async with self.pool.acquire() as connection:
            return JobRow.of(await queries.lock_job(connection, job_id=job_id))

    async def reaches(self, job_id: UUID, state: str, deadline_s: float = DEADLINE_S) -> JobRow:
        async def reached() -> bool:
            return (await self.job(job_id)).state == state

        await until(reached, f"{state}, but {(await self.job(job_id)).state}", deadline_s)
        return await self.job(job_id)

    async def events(self, job_id: UUID) -> list[tuple[str, dict[str, object]]]:
        async with self.pool.acquire() as connection:
            found = await jobs.list_events(connection, job_id, after=0, limit=1000)
        assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
        return [(event["type"], event["data"]) for event in found]

    async def has_event(self, job_id: UUID, kind: str, times: int = 1) -> list[dict[str, object]]:
        """Wait for that many events of a type; answers their data."""
        found: list[dict[str, object]] = []

        async def seen() -> bool:
            found[:] = [data for type_, data in await self.events(job_id) if type_ == kind]
            return len(found) >= times

        await until(seen, f"{times} events {kind}")
        return found

    async def be_due(self, job_id: UUID) -> None:
        """Let the wait before the next claim pass."""
        await self.pool.execute("update jobs set not_before = now() where id = $1", job_id)


@pytest.fixture
async def site(database_url: str, storage: Storage) -> AsyncIterator[Site]:
    pool = await connect_pool(database_url, application_name="test", max_size=5)
    yield Site(pool, storage)
    await pool.close()


@pytest.fixture
def worker_settings(
    stack: Stack, database_name: str, common_settings: CommonSettings, redis_url: str, tmp_path: Path
) -> WorkerSettings:
    """With the rights of a worker in the database."""
    own = QUICK | {"redis_url": redis_url, "work_dir": str(tmp_path / "work")}
    own["database_url"] = stack.database_url(database_name, "worker")
    return msgspec.convert(msgspec.structs.asdict(common_settings) | own, WorkerSettings)


Start = Callable[..., Awaitable[Daemon]]


@pytest.fixture
async def start_daemon(worker_settings: WorkerSettings) -> AsyncIterator[Start]:
    """Starts daemons in this process: start_daemon(**settings). All are gone after the test."""
    running: list[asyncio.Task[None]] = []

    async def start(**changes: object) -> Daemon:
        daemon = Daemon(msgspec.structs.replace(worker_settings, **changes))
        running.append(asyncio.create_task(daemon.run()))
        return daemon

    yield start
    for task in running:
        task.cancel()
    ended = await asyncio.gather(*running, return_exceptions=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)
    assert [error for error in ended if error is not None and not isinstance(error, asyncio.CancelledError)] == []


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.stop_all()


@pytest.fixture
def worker_environment(service_environment: dict[str, str], worker_settings: WorkerSettings) -> dict[str, str]:
    """The environment of a worker that runs as a process of its own."""
    own = {f"FUSION_{name.upper()}": str(value) for name, value in QUICK.items()}
    own |= {"FUSION_WORK_DIR": worker_settings.work_dir, "FUSION_DATABASE_URL": worker_settings.database_url}
    return base_environment() | service_environment | own


def family_of(work_dir: str) -> set[psutil.Process]:
    """Every process that names the folder in its command, and its descendants."""
    family: set[psutil.Process] = set()
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(work_dir in part for part in process.info["cmdline"] or ()):
            family.add(process)
            with contextlib.suppress(psutil.NoSuchProcess):
                family.update(process.children(recursive=True))
    return family


def alive(family: set[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie does not."""
    running = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running
