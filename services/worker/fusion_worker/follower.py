"""A follower: it lends its devices to the leader's attempts. No database, no claims, no lease."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import msgspec
import structlog
from fusion_core.settings import Secret
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import write_run

from fusion_worker import alive, crash_reason
from fusion_worker.group import GroupIncompleteError
from fusion_worker.group_link import Ended, GroupRun, Launch, Leaving, Link, NodeLostError, Prepare, Prepared
from fusion_worker.input_cache import InputCache
from fusion_worker.metrics import Metrics
from fusion_worker.settings import WorkerSettings
from fusion_worker.trainer_process import TrainerProcess, kill_strays

log = structlog.get_logger()
LEAVE_S = 5.0  # beyond the leader's own grace


class FollowerSettings(WorkerSettings, frozen=True, kw_only=True):
    """A worker's settings that ask for no database and no Redis."""

    database_url: Secret = ""
    redis_url: Secret = ""

    def __post_init__(self) -> None:
        """Raises ValueError for a group that cannot form."""
        super().__post_init__()
        if self.node_rank == 0:
            raise ValueError("FUSION_NODE_RANK: write a leader's as 0")


class Follower:
    """One follower's daemon."""

    def __init__(self, settings: FollowerSettings) -> None:
        self._settings = settings
        self._leaving = asyncio.Event()
        self._runs = Path(settings.work_dir) / "runs"
        self._trainer: TrainerProcess | None = None
        self._last_joined = time.monotonic()

    def leave(self) -> None:
        """The leader is told, and has the attempt stop at a checkpoint."""
        log.info("draining")
        self._leaving.set()

    async def run(self) -> None:
        """Until told to leave. Raises GroupIncompleteError where no leader admits it within the group's deadline."""
        await self._clean()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.leave)
        metrics = Metrics()
        metrics.serve(self._settings)
        marks = asyncio.create_task(self._mark_for_ever(metrics))
        try:
            async with Storage(self._settings) as storage:
                folder = Path(self._settings.work_dir) / "cache"
                self._cache = InputCache(folder, self._settings.cache_bytes, storage, metrics)
                while not self._leaving.is_set():
                    await self._belong()
        finally:
            marks.cancel()
            await asyncio.gather(marks, return_exceptions=True)
        log.info("follower_gone")

    async def _mark_for_ever(self, metrics: Metrics) -> None:
        while True:
            alive.mark(Path(self._settings.work_dir))
            metrics.turned.set_to_current_time()
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _clean(self) -> None:
        """Nothing of an attempt, this process's or a crashed predecessor's, is left when the leader hears of us."""
        await asyncio.to_thread(kill_strays, self._runs)
        if self._trainer is not None:
            await self._trainer.kill()
            self._trainer = None
        await asyncio.to_thread(shutil.rmtree, self._runs, ignore_errors=True)

    async def _belong(self) -> None:
        """One connection, from joining to its end."""
        try:
            link = await Link.open(self._settings)
            async with link.beating():
                await link.greet(self._settings.node_rank)
                log.info("joined", leader=self._settings.leader_host, rank=self._settings.node_rank)
                await self._serve(link)
        except NodeLostError as error:
            log.info("leader_left", reason=str(error))
        finally:
            await self._clean()
        waited_s = time.monotonic() - self._last_joined
        if waited_s > self._settings.group_deadline_s:
            raise GroupIncompleteError(
                f"the leader {self._settings.leader_host} did not admit this node for {waited_s:.0f} s"
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), self._settings.heartbeat_s)

    async def _serve(self, link: Link) -> None:
        """The attempt that the leader asks for, until the connection ends. Raises NodeLostError."""
        launch = asyncio.Event()
        work: asyncio.Task[None] | None = None
        leaving = asyncio.create_task(self._leave(link))
        try:
            while True:
                received = asyncio.create_task(link.receive())
                try:
                    await asyncio.wait({received, leaving}, return_when=asyncio.FIRST_COMPLETED)
                    if leaving.done():
                        return
                    message = await received
                finally:
                    received.cancel()
                    self._last_joined = time.monotonic()
                if isinstance(message, Prepare) and work is None:
                    work = asyncio.create_task(self._attempt(link, message, launch))
                elif isinstance(message, Launch):
                    launch.set()
        finally:
            tasks = [task for task in (work, leaving) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self, link: Link) -> None:
        """Once told to leave: the leader closes the connection when its attempt is safe, or we do after the grace."""
        await self._leaving.wait()
        await link.send(Leaving())
        if self._runs.exists():
            await asyncio.sleep(self._settings.drain_grace_s + LEAVE_S)

    async def _attempt(self, link: Link, prepare: Prepare, launch: asyncio.Event) -> None:
        """Never raises for what happens to the attempt: the leader is told."""
        with structlog.contextvars.bound_contextvars(job_id=prepare.run.job_id, epoch=prepare.run.lease_epoch):
            try:
                reason = await self._work(link, prepare, launch)
            except NodeLostError:
                return
            except Exception as error:  # the daemon must outlive any attempt
                log.error("attempt_crashed", error=repr(error), exc_info=error)
                reason = Ended(*crash_reason.of_daemon(error))
            with contextlib.suppress(NodeLostError):
                await link.send(reason)

    async def _work(self, link: Link, prepare: Prepare, launch: asyncio.Event) -> Ended:
        run_dir = self._runs / Path(prepare.run_dir).name
        run_dir.mkdir(parents=True)
        log.info("attempt_started", files=len(prepare.files))
        for staged in prepare.files:
            await self._cache.place(staged.key, staged.file, run_dir / staged.file.rel)
        run = moved(prepare.run, prepare.run_dir, str(run_dir))
        write_run(run_dir, run)
        await link.send(Prepared())
        await launch.wait()
        settings = msgspec.structs.replace(self._settings, sharding=prepare.sharding)
        self._trainer = await TrainerProcess.launch(run, run_dir, settings)
        returncode = await self._trainer.wait()
        log.info("trainer_ended", returncode=returncode)
        return Ended(*crash_reason.of_trainer(self._trainer.log_tail(), returncode)) if returncode else Ended(None, "")


def moved(run: GroupRun, source: str, destination: str) -> GroupRun:
    """The run with every path below `source` below `destination`."""

    def at(path: str) -> str:
        return str(Path(destination) / os.path.relpath(path, source))

    return msgspec.structs.replace(
        run,
        base_dir=at(run.base_dir),
        train_shards=tuple(map(at, run.train_shards)),
        heldout_shards=tuple(map(at, run.heldout_shards)),
        rehearsal_files=tuple(map(at, run.rehearsal_files)),
        pool_files=tuple(map(at, run.pool_files)),
        checkpoint_dir=at(run.checkpoint_dir) if run.checkpoint_dir is not None else None,
    )
