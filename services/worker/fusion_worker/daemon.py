"""The daemon: idle, claim, run one attempt, idle again; SIGTERM drains it for good, an operator until undrained."""

import asyncio
import contextlib
import random
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import asyncpg
import structlog
from fusion_core import tracing
from fusion_core.db.attempts import Attempt, Claimer
from fusion_core.db.failing_workers import SHARED_CAUSES
from fusion_core.db.pool import POSTGRES_AWAY, close_pool, connect_pool, queries
from fusion_core.db.rows import JobRow
from fusion_core.db.worker_statements import WorkerConnection
from fusion_core.storage import Storage

from fusion_worker import alive
from fusion_worker.attempt import AttemptRunner, Machine
from fusion_worker.doorbell import Doorbell
from fusion_worker.group import Group
from fusion_worker.input_cache import InputCache
from fusion_worker.metrics import Metrics
from fusion_worker.readiness import Readiness
from fusion_worker.retry import connection_within
from fusion_worker.settings import WorkerSettings
from fusion_worker.slot import Slot
from fusion_worker.trainer_process import kill_strays

log = structlog.get_logger()
REPORT_PATIENCE_S = 5.0
BUSY_BEATS = 4


class Daemon:
    """One slot's daemon."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._claimer = Claimer(worker_id=uuid4(), pool=settings.pool)
        self._draining = asyncio.Event()
        self._runner: AttemptRunner | None = None
        self._attempt_now: Attempt | None = None
        self._drained: bool | None = None  # by an operator; not known until it has registered
        self._group: Group | None = None
        self.metrics = Metrics()

    async def run(self) -> None:
        """Until drained. No store needs to be reachable at the start."""
        work_dir = Path(self._settings.work_dir)
        work_dir.mkdir(parents=True, exist_ok=True)
        # What a crashed predecessor left: claim nothing before its trainers are gone.
        await asyncio.to_thread(kill_strays, work_dir / "runs")
        shutil.rmtree(work_dir / "runs", ignore_errors=True)
        self.metrics.serve(self._settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        async with AsyncExitStack() as stack:
            pool = await connect_pool(
                self._settings.database_url,
                application_name="fusion-worker",
                min_size=0,  # Postgres may be away: then the daemon waits
                max_size=4,
                prepared=self._settings.prepared_statements,
                connection_class=WorkerConnection,
            )
            stack.push_async_callback(close_pool, pool)
            storage = await stack.enter_async_context(Storage(self._settings))
            cache = InputCache(work_dir / "cache", self._settings.cache_bytes, storage, self.metrics)
            if self._settings.nodes > 1:
                self._group = await stack.enter_async_context(Group(self._settings, self._follower_leaves))
            self._machine = Machine(pool, storage, cache, self._settings, self.metrics, self._group)
            self._readiness = Readiness(self._settings, storage, self._group)
            self._slot = Slot(pool, self._claimer, self._settings, self._readiness)
            self._slot.closed = True  # until it has registered: it may be drained already
            self._doorbell = Doorbell(self._settings.redis_url, self._settings.pool, self._slot)
            alive.mark(work_dir)
            registered = await self._register()
            async with _running(self._doorbell.run()), _running(self._report_for_ever(registered)):
                log.info("worker_ready", worker_id=str(self._claimer.worker_id), pool=self._settings.pool)
                await self._serve()
            await self._report("gone")
        log.info("worker_gone")

    def drain(self) -> None:
        """Stop picking; a running attempt is saved, uploaded and released."""
        log.info("draining")
        self._draining.set()
        if hasattr(self, "_slot"):
            self._slot.closed = True
        if self._runner is not None:
            self._runner.drain()

    def _follower_leaves(self) -> None:
        """The attempt goes back at a checkpoint; the next one waits for the group to be whole again."""
        if self._runner is not None:
            self._runner.drain()

    def _heed_operator(self, drained: bool) -> None:
        """Drained, a worker gives its job back as on SIGTERM, but stays; undrained it claims again."""
        if drained == self._drained or self._draining.is_set():
            return
        if drained or self._drained is not None:
            log.info("drained" if drained else "undrained")
        self._drained = self._slot.closed = drained
        self._doorbell.follow_slot()
        if drained and self._runner is not None:
            self._runner.drain()

    async def _serve(self) -> None:
        served, idle_since = 0, time.monotonic()
        while not self._draining.is_set():
            claimed = await self._next()
            if claimed is not None:
                self._doorbell.follow_slot()
                await self._attempt(*claimed)
                served, idle_since = served + 1, time.monotonic()
                if served == self._settings.exit_after_jobs:
                    log.info("enough_jobs_done", jobs=served)
                    return
                self._slot.busy = False
                self._doorbell.follow_slot()
                continue
            if self._group is not None:
                self._group.check_deadline()
            if 0 < self._settings.exit_when_idle_s <= time.monotonic() - idle_since:
                self._slot.closed = True  # what is being claimed just now is still served
                if not await self._slot.settled():
                    log.info("idle_too_long", after_s=self._settings.exit_when_idle_s)
                    return

    async def _next(self) -> tuple[JobRow, Attempt] | None:
        await self._slot.look()
        pause = self._settings.idle_poll_s * random.uniform(1, 2)  # noqa: S311 - jitter, not a secret
        waiting = asyncio.create_task(self._slot.next(pause))
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({waiting, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done() and not await self._slot.settled():
                return None
            return await waiting
        finally:
            waiting.cancel()
            draining.cancel()

    async def _attempt(self, job: JobRow, attempt: Attempt) -> None:
        names = {"job_id": str(job.id), "epoch": attempt.epoch, "account_id": str(job.account_id)}
        with structlog.contextvars.bound_contextvars(**names):
            log.info("attempt_started", type=job.type)
            self._runner = AttemptRunner(self._machine, job, attempt)
            if self._draining.is_set() or self._drained:
                self._runner.drain()
            self._attempt_now = attempt
            await self._report()
            self.metrics.busy.set(1)
            try:
                with self.metrics.attempts.labels(job.type).time(), _traced(job):
                    await self._runner.run()
            finally:
                self._readiness.attempt_ended(doubts_storage=self._runner.crash_code in SHARED_CAUSES)
                self._runner = None
                self._attempt_now = None
                self.metrics.attempt_ended()
            await self._report()

    async def _report_for_ever(self, registered: bool) -> None:
        """A busy worker reports, too, if less often: its lease says that it lives, its row that its pool has it."""
        beat = 0
        while True:
            alive.mark(Path(self._settings.work_dir))
            self.metrics.turned.set_to_current_time()
            if not registered:
                registered = await self._register()
            elif not self._slot.busy or beat % BUSY_BEATS == 0:
                registered = await self._report()
            beat += 1
            await asyncio.sleep(self._settings.heartbeat_s)

    @property
    def _state(self) -> str:
        if self._draining.is_set() or self._drained:
            return "draining"
        return "idle" if self._attempt_now is None else "busy"

    async def _register(self) -> bool:
        try:
            async with connection_within(self._machine.pool, REPORT_PATIENCE_S) as connection:
                row = await queries.register_worker(
                    connection,
                    id=self._claimer.worker_id,
                    name=self._settings.name or socket.gethostname(),
                    pool=self._settings.pool,
                    spec_version=self._claimer.spec_version,
                    capabilities=list(self._claimer.capabilities),
                    version=version("fusion"),
                    gpus=self._settings.gpus,
                )
                await queries.declare_pool(
                    connection,
                    worker_id=self._claimer.worker_id,
                    pool=self._settings.pool,
                    gpu_class=self._settings.gpu_class or None if self._settings.gpus else None,
                    gpu_count=self._settings.gpus if self._settings.gpu_class else 0,
                )
        except POSTGRES_AWAY as error:
            not_migrated = isinstance(error, asyncpg.InvalidSchemaNameError)
            hint = "run fusion-admin migrate of this worker's release" if not_migrated else None
            log.warning("not_registered", error=str(error), hint=hint)
            return False
        self._heed_operator(row["drained"])
        return True

    async def _report(self, state: str | None = None) -> bool:
        """Say how this worker is, hear what its operator wishes. False: the row is gone, after days of silence."""
        with contextlib.suppress(*POSTGRES_AWAY):
            async with connection_within(self._machine.pool, REPORT_PATIENCE_S) as connection:
                seen = await queries.worker_seen(
                    connection,
                    id=self._claimer.worker_id,
                    state=state or self._state,
                    job_id=None if self._attempt_now is None else self._attempt_now.job_id,
                )
            if seen is not None:
                self._heed_operator(seen["drained"])
            return seen is not None
        return True


@contextlib.contextmanager
def _traced(job: JobRow) -> Iterator[None]:
    """The attempt as a span of the trace that the job's request began; before the first one lies the wait."""
    if job.lease_epoch == 1:
        tracing.start("queued", parent=job.traceparent, since=job.created_at).end()
    about: tracing.Attributes = {
        "fusion.job_id": str(job.id),
        "fusion.job_type": job.type,
        "fusion.pool": job.pool,
        "fusion.attempt": job.lease_epoch,
    }
    with tracing.span("attempt", about, parent=job.traceparent, kind="consumer"):
        yield


@contextlib.asynccontextmanager
async def _running(coroutine: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """A task beside the block, cancelled at its end. One that ends by itself is a bug, and says so at once."""
    task = asyncio.create_task(coroutine)
    task.add_done_callback(_tell_of_a_bug)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _tell_of_a_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("loop_broke", loop=repr(task.get_coro()), error=repr(error), exc_info=error)
