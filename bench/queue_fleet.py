"""Simulated workers: a worker's calls into Postgres and Redis without its trainer. `control_plane.py` starts these.

    python bench/queue_fleet.py ORDER   # an Order as JSON; answers a Report as JSON on stdout

One process stands for many workers. Each does what a daemon does, in the daemon's order: after a job it looks into
Postgres (`claim_next`), and where there is nothing it waits for the doorbell. Claims, heartbeats, events, checkpoints
and completions are the product's own functions. All workers of a process share one arq consumer with many jobs at once:
a thousand arq workers in one process would poll Redis 20,000 times a second and measure arq's polling, which on a
thousand machines costs each of them a hundredth of a core.
"""

import asyncio
import os
import random
import sys
import time
from typing import Any, cast
from uuid import UUID, uuid4

import msgspec
import uvloop
from arq.connections import RedisSettings
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func
from fusion_core import s3_keys
from fusion_core.db import attempts, checkpoints
from fusion_core.db.attempts import Attempt, Claimer, LeaseLostError, NewModel, WorkerEvent
from fusion_core.db.checkpoints import NewCheckpoint
from fusion_core.db.pool import Pool, connect_pool, queries
from fusion_core.db.rows import JobRow
from fusion_core.db.worker_statements import WorkerConnection
from queue_world import CONFIG, MANIFEST, POOL

TTL_S = 20.0
HEARTBEAT_S = 5.0
LOOK_AGAIN_S = (5.0, 10.0)
EMPTY_S = 0.005
DEADLINE_S = 3000.0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a process of simulated workers is to do.

    `by`: how jobs are claimed: `look` straight from Postgres, `ring` by the doorbell alone, `both` as a daemon does.
    `jobs`: the process ends when its workers have completed so many; 0: each worker holds one until it is to stop.
    `events`: how many each attempt appends, in batches of `batch`, every second one a metrics point.
    """

    workers: int
    connections: int
    by: str = "look"
    jobs: int = 0
    events: int = 0
    batch: int = 10
    checkpoints: int = 0
    seed: int = 0


class Report(msgspec.Struct, kw_only=True):
    """What the workers of one process did; times are Unix seconds, waits and calls in seconds."""

    began: float = 0.0
    ended: float = 0.0
    completed: int = 0
    rung: int = 0
    claims: int = 0
    empty: int = 0
    events: int = 0
    heartbeats: int = 0
    lost: int = 0
    waits: list[float] = msgspec.field(default_factory=list)
    calls: dict[str, list[float]] = msgspec.field(default_factory=dict)


class Fleet:
    """The workers of one process over one connection pool, as many machines would share a pooler's connections."""

    def __init__(self, pool: Pool, order: Order) -> None:
        self._pool = pool
        self._order = order
        self._random = random.Random(order.seed)
        self._left = order.jobs
        self._idle: asyncio.Queue[asyncio.Future[tuple[UUID, int]]] = asyncio.Queue()
        self._consumer: Worker | None = None
        self._listening = 0
        self.report = Report()

    async def run(self, redis_url: str) -> None:
        """Raises ExceptionGroup or TimeoutError."""
        if self._rings:
            self._consumer = _consumer(redis_url, self._order.workers, self._rung)
        bell = asyncio.create_task(self._consumer.main()) if self._consumer is not None else None
        self.report.began = time.time()
        async with asyncio.timeout(DEADLINE_S):
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._order.workers):
                    workers.create_task(self._work() if self._order.jobs else self._hold())
        self.report.ended = time.time()
        if bell is not None:
            bell.cancel()
            await asyncio.gather(bell, return_exceptions=True)

    @property
    def _rings(self) -> bool:
        return self._order.by != "look" and self._order.jobs > 0

    # -- the life of one worker ---------------------------------------------------------------------------------------

    async def _work(self) -> None:
        claimer = Claimer(worker_id=uuid4(), pool=POOL)
        while self._left > 0:
            self._left -= 1  # a worker that looks for a job stands for one: the process takes its share and no more
            held = await self._look(claimer) if self._order.by != "ring" else None
            if held is None and self._rings:
                held = await self._listen(claimer)
            if held is None:
                self._left += 1
                await asyncio.sleep(EMPTY_S * self._random.uniform(0.5, 1.5))
                continue
            try:
                await self._attempt(*held)
            except LeaseLostError:
                self.report.lost += 1
                self._left += 1
            else:
                self.report.completed += 1

    async def _look(self, claimer: Claimer) -> tuple[JobRow, Attempt] | None:
        attempt_id = uuid4()
        job = await self._call("claim_next", attempts.claim_next, claimer, attempt_id, TTL_S)
        return self._claimed(job, attempt_id)

    async def _listen(self, claimer: Claimer) -> tuple[JobRow, Attempt] | None:
        """Until the doorbell rings for this worker, or it is time to look again."""
        bell: asyncio.Future[tuple[UUID, int]] = asyncio.get_running_loop().create_future()
        self._idle.put_nowait(bell)
        self._count_listeners(1)
        try:
            async with asyncio.timeout(self._random.uniform(*LOOK_AGAIN_S)):
                job_id, epoch = await bell
        except TimeoutError:
            return None
        finally:
            self._count_listeners(-1)
        attempt_id = uuid4()
        job = await self._call("claim", attempts.claim, claimer, job_id, epoch, attempt_id, TTL_S)
        self.report.rung += job is not None
        return self._claimed(job, attempt_id)

    def _count_listeners(self, change: int) -> None:
        """No more rings are taken than workers listen: a ring that waits in one process is another's loss."""
        self._listening += change
        if self._consumer is not None:
            self._consumer.max_jobs = self._listening

    async def _rung(self, _ctx: dict[Any, Any], job_id: str, epoch: int) -> None:
        """The arq function: hands the ring to the worker that has been idle longest."""
        while True:
            bell = await self._idle.get()
            if not bell.done():
                bell.set_result((UUID(job_id), epoch))
                return

    def _claimed(self, job: JobRow | None, attempt_id: UUID) -> tuple[JobRow, Attempt] | None:
        if job is None:
            self.report.empty += 1
            return None
        self.report.claims += 1
        if job.started_at is not None:
            self.report.waits.append((job.started_at - job.created_at).total_seconds())
        return job, Attempt(job.id, job.lease_epoch, attempt_id)

    async def _attempt(self, job: JobRow, attempt: Attempt) -> None:
        """Events, checkpoints, the end; beside them the heartbeat. Raises LeaseLostError."""
        beating = asyncio.create_task(self._beat(attempt))
        try:
            await self._make_progress(job, attempt)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _make_progress(self, job: JobRow, attempt: Attempt) -> None:
        numbers = range(1, self._order.events + 1)
        for first in range(0, len(numbers), self._order.batch):
            batch = [_event(number) for number in numbers[first : first + self._order.batch]]
            appended = await self._call("append_events", attempts.append_events, attempt, batch, "training")
            self.report.events += appended
        prefix = s3_keys.attempt(job.id, attempt.epoch, attempt.attempt_id)
        for number in range(1, self._order.checkpoints + 1):
            checkpoint = NewCheckpoint(
                step=number,
                turn_end=False,
                s3_prefix=s3_keys.checkpoint(prefix, number),
                manifest=MANIFEST,
                format_version=1,
            )
            await self._call("commit_checkpoint", checkpoints.commit_checkpoint, attempt, checkpoint)
        model = NewModel(
            name=f"model-{job.idempotency_key}",
            params=2,
            config=CONFIG,
            s3_prefix=s3_keys.export(prefix),
            manifest=MANIFEST,
        )
        result = {"train_loss": 1.0}
        await self._call("complete_training", attempts.complete_training, attempt, model, result, job)

    async def _hold(self) -> None:
        """Claim one job and keep its lease until asked to stop, as a worker that trains."""
        claimer = Claimer(worker_id=uuid4(), pool=POOL)
        held = None
        while held is None:
            held = await self._look(claimer)
            if held is None:
                await asyncio.sleep(EMPTY_S * self._random.uniform(0.5, 1.5))
        _, attempt = held
        await asyncio.sleep(self._random.uniform(0, HEARTBEAT_S))
        await self._beat(attempt)
        await self._call("obey", attempts.obey, attempt)

    async def _beat(self, attempt: Attempt) -> None:
        """Renew the lease until the reply asks to stop. Raises LeaseLostError."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if (await self._call("renew", attempts.renew, attempt, TTL_S)).stop:
                return
            self.report.heartbeats += 1

    async def _call(self, name: str, function: Any, *arguments: Any) -> Any:
        """One of the product's functions on a connection of the pool; its time is that of the call alone."""
        async with self._pool.acquire() as connection:
            began = time.perf_counter()
            answer = await function(connection, *arguments)
            self.report.calls.setdefault(name, []).append(time.perf_counter() - began)
            return answer


def _event(number: int) -> WorkerEvent:
    if number % 2:
        return WorkerEvent(number, "phase", {"phase": "training"})
    point = {"step": number, "loss": 2.0, "lr": 1e-4, "tokens_per_s": 1000.0, "ts": "2026-01-01T00:00:00Z"}
    return WorkerEvent(number, "metrics", point)


def _consumer(redis_url: str, workers: int, rung: Any) -> Worker:
    """As `fusion_worker.doorbell`, for many workers at once."""
    return Worker(
        functions=[func(cast(WorkerCoroutine, rung), name="claim_job", keep_result=0, timeout=DEADLINE_S, max_tries=1)],
        queue_name=f"fusion:doorbell:{POOL}",
        redis_settings=RedisSettings.from_dsn(redis_url),
        max_jobs=min(workers, 100),
        poll_delay=0.01,
        keep_result=0,
        job_timeout=DEADLINE_S,
        health_check_interval=3600,
        handle_signals=False,
        job_serializer=msgspec.json.encode,
        job_deserializer=msgspec.json.decode,
    )


async def serve(order: Order) -> Report:
    pool = await connect_pool(
        os.environ["FUSION_DATABASE_URL"],
        application_name="fusion-worker",
        min_size=order.connections,
        max_size=order.connections,
        prepared=os.environ.get("FUSION_PREPARED_STATEMENTS") != "false",
        connection_class=WorkerConnection,
    )
    fleet = Fleet(pool, order)
    await queries.checkpoint_age(pool, job_id=uuid4())  # the first call of a connection reads the catalog
    await fleet.run(os.environ["FUSION_REDIS_URL"])
    await pool.close()
    return fleet.report


def main() -> None:
    order = msgspec.json.decode(sys.argv[1], type=Order)
    report = uvloop.run(serve(order))
    sys.stdout.buffer.write(msgspec.json.encode(report))


if __name__ == "__main__":
    main()
