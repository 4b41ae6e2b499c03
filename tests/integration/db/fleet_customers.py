"""What customers do, one step a call, and what the rows say must come of it. Begins and ends an interleaving."""

from typing import Any
from uuid import UUID, uuid4

from fusion_core.contraction_plan import plan_contraction
from fusion_core.db import job_resumption, jobs, webhooks
from fusion_core.db.attempts import Attempt, Claimer
from fusion_core.db.pool import Connection
from fusion_core.db.rehearsal_pools import Base, ensure_sampled
from fusion_core.db.rows import JobRow
from fusion_core.growth_plan import plan_growth
from fusion_core.job_spec import (
    ContractHyperparams,
    ContractSpec,
    FinetuneHyperparams,
    FinetuneSpec,
    IngestSpec,
    TrainSpec,
)
from fusion_core.money import DEFAULT_PRICES, Estimate, estimate_contract, estimate_finetune, estimate_train
from fusion_core.states import TERMINAL, State
from fusion_core.webhooks import EVENT_TYPES

from tests.inputs import CONFIG
from tests.integration.db.bucket import MemoryBucket
from tests.integration.db.conftest import HYPERPARAMS, World
from tests.integration.db.invariants import History, Violation, violations

TTL_S, GAP_S = 20.0, 10.0
MAX_RUNNING = 2  # of each account


class Customers:
    """Two customers, one pool with three workers, a bucket, webhooks: everything of one interleaving."""

    conn: Connection

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = world.clock
        self.bucket = MemoryBucket()
        self.history = History()
        self.pool = uuid4().hex
        self.jobs: list[UUID] = []
        self.attempts: list[Attempt] = []  # every one that ever held a job
        self.numbers: dict[UUID, int] = {}  # attempt -> events that it has sent
        self.workers = [Claimer(worker_id=uuid4(), pool=self.pool) for _ in range(3)]

    async def begin(self) -> None:
        self.conn = await self.world.pool.acquire()
        await self.conn.execute(
            "set plan_cache_mode = force_generic_plan; set jit = off"
        )  # planning takes most of a check
        await self.conn.execute("delete from sweeps; delete from dispatch_pauses; delete from webhook_endpoints")
        self.last_sweep: Any = None
        self.reclaim_after: Any = None
        self.accounts = [await self.world.account() for _ in range(2)]
        self.base = await self.world.base_model()
        self.datasets = [await self.world.dataset(account_id) for account_id in self.accounts]
        await self.conn.execute(
            "update accounts set max_running_jobs = $1 where id = any($2::uuid[])", MAX_RUNNING, self.accounts
        )
        for worker in self.workers:
            await self.conn.execute(
                "insert into workers (id, name, pool, spec_version, version, state, gpus) "
                "values ($1, 'w', $2, 1, '1', 'idle', 1)",
                worker.worker_id,
                self.pool,
            )
        for account_id in self.accounts:
            await webhooks.create_endpoint(
                self.conn, account_id, url="https://example.com", event_types=EVENT_TYPES, description=""
            )

    async def broken(self) -> list[Violation]:
        """What must always hold and does not."""
        now = await violations(self.conn, self.jobs, objects=self.bucket.objects, lease_ttl_s=TTL_S)
        return now + await self.history.observe(self.conn, self.jobs)

    async def row(self, job_id: UUID) -> JobRow:
        return JobRow.of(await self.conn.fetchrow("select * from jobs where id = $1", job_id))

    async def rows(self) -> list[Any]:
        return await self.conn.fetch("select * from jobs where pool = $1", self.pool)

    # -- customers ---------------------------------------------------------------------------------------------------

    async def submit(self, kind: str, who: int, key: str) -> UUID | None:
        """None: this account has no model to contract, or the key belongs to another request."""
        await self.clock.advance(1)
        new = await self._new(kind, self.accounts[who], key)
        if new is None:
            return None
        before = await self.conn.fetchrow(
            "select id, request_sha256 from jobs where account_id = $1 and idempotency_key = $2",
            new.account_id,
            new.idempotency_key,
        )
        try:
            job, created = await jobs.submit_job(self.conn, new)
        except jobs.IdempotencyConflictError:
            assert before is not None
            assert before["request_sha256"] != new.request_sha256
            return None
        assert created == (before is None)
        assert created or job.id == before["id"]
        return self._add(job.id)

    def _add(self, job_id: UUID) -> UUID:
        if job_id not in self.jobs:
            self.jobs.append(job_id)
        return job_id

    async def _new(self, kind: str, account_id: UUID, key: str) -> jobs.NewJob | None:
        shared: dict[str, Any] = {"account_id": account_id, "pool": self.pool, "type": kind}
        if kind == "ingest":
            dataset_id = await self.world.dataset(account_id, ready=False)
            return jobs.NewJob(spec=IngestSpec(uploads=(("tmp/x", "x.jsonl"),)), dataset_id=dataset_id, **shared)
        shared |= {"idempotency_key": key, "request_sha256": kind.encode().ljust(32), "price_version": 1}
        dataset_id = self.datasets[self.accounts.index(account_id)]
        if kind == "contract":
            source = await self.conn.fetchval("select id from models where account_id = $1 limit 1", account_id)
            plan = plan_contraction(CONFIG, 0.5)
            spec = ContractSpec(hyperparams=ContractHyperparams(), contraction_plan=plan, base_model_name="tiny")
            estimate = estimate_contract(DEFAULT_PRICES, plan.params_before)
            return source and jobs.NewJob(spec=spec, source_model_id=source, estimate=estimate, **shared)
        priced = self._train() if kind == "train" else self._finetune()
        return jobs.NewJob(spec=priced[0], estimate=priced[1], dataset_id=dataset_id, base_model_id=self.base, **shared)

    @staticmethod
    def _train() -> tuple[TrainSpec, Estimate]:
        plan = plan_growth(CONFIG)
        spec = TrainSpec(hyperparams=HYPERPARAMS, growth_plan=plan, base_model_name="tiny")
        return spec, estimate_train(DEFAULT_PRICES, plan.params_before, plan.params_after, HYPERPARAMS.training_tokens)

    @staticmethod
    def _finetune() -> tuple[FinetuneSpec, Estimate]:
        spec = FinetuneSpec(hyperparams=FinetuneHyperparams(steps=20), params=1, base_model_name="tiny")
        return spec, estimate_finetune(DEFAULT_PRICES, 1, spec.total_steps * spec.tokens_per_step)

    async def sample(self) -> UUID | None:
        job = await ensure_sampled(self.conn, Base(base_model_id=self.base), config=CONFIG, rows=8, pool=self.pool)
        return None if job is None else self._add(job.id)

    async def cancel(self, job_id: UUID) -> None:
        before = await self.row(job_id)
        after = await jobs.cancel_job(self.conn, before.account_id, job_id)
        if before.type in ("ingest", "sample"):
            assert after is None, "internal jobs are nobody's to cancel"
        elif before.state in TERMINAL:
            assert after == before
        else:
            assert after is not None
            assert after.cancel_requested_at is not None
            assert after.state == (State.RUNNING if before.state == State.RUNNING else State.CANCELLED)

    async def stop(self, job_id: UUID) -> None:
        before = await self.row(job_id)
        after = await jobs.stop_job(self.conn, before.account_id, job_id)
        if after is not None:
            assert after.state == (State.STOPPED if before.state == State.QUEUED else before.state)
            assert before.state != State.RUNNING or after.stop_requested_at is not None

    async def resume(self, job_id: UUID) -> None:
        before = await self.row(job_id)
        after = await jobs.resume_job(self.conn, before.account_id, job_id)
        if after is not None:
            assert after.state == (State.QUEUED if before.state == State.STOPPED else before.state)
            assert before.state != State.STOPPED or after.stop_requested_at is None

    async def resume_from(self, job_id: UUID, place: int) -> UUID | None:
        """From one of its checkpoints, counted from the newest; None where that made no other job."""
        before = await self.row(job_id)
        found = await self.conn.fetch(
            "select id, state, step from checkpoints where job_id = $1 order by step desc", job_id
        )
        if not found:
            return None
        checkpoint = found[place % len(found)]
        call = (self.conn, before.account_id, job_id, checkpoint["id"], DEFAULT_PRICES, f"resume-{checkpoint['id']}")
        try:
            made = await job_resumption.resume_from_checkpoint(*call)
        except job_resumption.CheckpointGoneError:
            assert checkpoint["state"] != "ok"
            return None
        except job_resumption.NotStoppedError:
            assert before.state != State.STOPPED
            return None
        if made is None:
            assert before.type in ("ingest", "sample"), "internal jobs are nobody's to resume"
            return None
        if made.job.id != job_id:
            assert made.job.start_step == checkpoint["step"] < before.last_checkpoint_step
            assert made.job.resumed_from == job_id
        return self._add(made.job.id)

    async def stranger(self, job_id: UUID) -> None:
        other = (
            self.accounts[1 - self.accounts.index((await self.row(job_id)).account_id)]
            if await self._owned(job_id)
            else uuid4()
        )
        before = await self.row(job_id)
        for call in (jobs.cancel_job, jobs.stop_job, jobs.resume_job, jobs.get_job):
            assert await call(self.conn, other, job_id) is None
        assert await self.row(job_id) == before

    async def _owned(self, job_id: UUID) -> bool:
        return (await self.row(job_id)).account_id in self.accounts
