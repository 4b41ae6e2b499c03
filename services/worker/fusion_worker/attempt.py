"""The life of one attempt, from a claimed job to its outcome."""

import asyncio
import contextlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from fusion_core import failpoints, s3_keys, tracing
from fusion_core.db import attempts, rehearsal_pools
from fusion_core.db.attempts import Attempt, CancelPendingError, LeaseLostError, NewModel, NewShard
from fusion_core.db.pool import Pool, queries
from fusion_core.db.rows import JobRow
from fusion_core.stack_dump import innermost_frame
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import REPORT_FILE, Finished, IngestRun, Manifest, Rejected, Stopped, write_control
from fusion_core.untrusted_files import read_untrusted

from fusion_worker import crash_reason
from fusion_worker.crash_reason import NoOutputError
from fusion_worker.events_pump import EventsPump
from fusion_worker.group import Followers, Group
from fusion_worker.heartbeat import Heartbeat
from fusion_worker.input_cache import InputCache
from fusion_worker.metrics import Metrics
from fusion_worker.retry import with_postgres
from fusion_worker.settings import WorkerSettings
from fusion_worker.staging import Stager, UploadRejectedError, output_name
from fusion_worker.stall_watch import StallWatch, TrainerStalledError, data_bytes_of
from fusion_worker.trainer_process import TrainerProcess
from fusion_worker.uploads import CheckpointUploader, upload_folder, upload_verified, uploading

log = structlog.get_logger()
LARGEST_JSON_BYTES = 64 * 2**20


class Machine(NamedTuple):
    """What a daemon lends to its attempts."""

    pool: Pool
    storage: Storage
    cache: InputCache
    settings: WorkerSettings
    metrics: Metrics
    group: Group | None = None
    """The other machines of the slot."""


class AttemptRunner:
    """Runs one attempt. Whatever happens, its processes and its folder are gone afterwards."""

    def __init__(self, machine: Machine, job: JobRow, attempt: Attempt) -> None:
        self._machine = machine
        self._job = job
        self._attempt = attempt
        self._prefix = s3_keys.attempt(attempt.job_id, attempt.epoch, attempt.attempt_id)
        self._run_dir = Path(machine.settings.work_dir) / "runs" / f"{job.id}-{attempt.epoch}"
        self._trainer: TrainerProcess | None = None
        self._followers: Followers | None = None
        self._grace_over = False
        self.crash_code: str | None = None
        """Of the crash that ended the attempt, if one did."""
        pool, settings = machine.pool, machine.settings
        self._heartbeat = Heartbeat(pool, settings, attempt, self._run_dir, machine.metrics)
        self._uploader = CheckpointUploader(pool, machine.storage, settings, attempt, machine.metrics)
        self._pump = EventsPump(pool, settings, attempt, self._run_dir, self._uploader.add, machine.metrics)

    def drain(self) -> None:
        """Stop at a checkpoint and release the job; within the grace period in any case."""
        self._heartbeat.ask_to_stop("drain")

    async def run(self) -> None:
        """Never raises for what happens to the job; the row says how it ended."""
        try:
            self._run_dir.mkdir(parents=True)
            await self._run_guarded()
        except LeaseLostError:
            log.warning("attempt_dropped", reason="lease_lost")
        except Exception as error:  # noqa: BLE001 - the daemon must outlive any attempt
            await self._report_crash(error)
        finally:
            if self._trainer is not None:
                await self._trainer.kill()
            if self._followers is not None:
                self._followers.close()
            shutil.rmtree(self._run_dir, ignore_errors=True)

    async def _run_guarded(self) -> None:
        """The work beside its heartbeat, its uploads and the deadline of a stop: the first to end decides."""
        side = [
            asyncio.create_task(self._heartbeat.run(), name="heartbeat"),
            asyncio.create_task(self._uploader.run(), name="uploads"),
            asyncio.create_task(self._stop_deadline(), name="stop"),
        ]
        work = asyncio.create_task(self._work(), name="work")
        try:
            done, _ = await asyncio.wait({work, *side}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (work, *side):
                task.cancel()
            await asyncio.gather(work, *side, return_exceptions=True)

    async def _stop_deadline(self) -> None:
        """A trainer that does not stop when asked, for a drain or by the customer, is killed after the grace period."""
        await self._heartbeat.asked.wait()
        await asyncio.sleep(self._machine.settings.drain_grace_s)
        log.warning("stop_grace_over", reason=self._heartbeat.stop_reason)
        self._grace_over = True
        if self._trainer is not None:  # before Postgres is told, which may be away for long
            await self._trainer.kill()
        await self._persist(attempts.release)

    async def _persist(self, call: Any, *arguments: Any) -> Any:
        async def write(connection: Any) -> Any:
            return await call(connection, self._attempt, *arguments)

        return await with_postgres(self._machine.pool, write, for_s=self._machine.settings.isolation_limit_s)

    # -- the work ------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        stager = Stager(self._machine.pool, self._machine.storage, self._machine.cache, self._machine.settings)
        try:
            with tracing.span("stage inputs", kind="client"):
                run = await stager.stage(self._job, self._attempt, self._run_dir)
        except UploadRejectedError as error:
            await self._persist(attempts.fail, error.code, str(error))
            return
        if self._heartbeat.stop_reason is not None:  # asked to stop before there was a trainer to tell
            write_control(self._run_dir, self._heartbeat.stop_reason)
        if self._machine.group is not None and not isinstance(run, IngestRun):
            self._followers = self._machine.group.take()
            fault = await self._followers.prepare(run, self._run_dir, stager.staged)
            if fault is not None:
                await self._crash(*fault)
                return
        self._trainer = await TrainerProcess.launch(run, self._run_dir, self._machine.settings)
        if self._followers is not None:
            await self._followers.launch()
        try:
            await self._follow(StallWatch(self._machine.settings.stall_s, data_bytes_of(run)))
        except TrainerStalledError as error:
            await self._stalled(error)
        else:
            await self._finish()

    async def _follow(self, watch: StallWatch) -> None:
        """Until the trainer has ended, or should have, and every event it wrote has been taken.

        Raises TrainerStalledError.
        """
        assert self._trainer is not None
        ended = asyncio.create_task(self._trainer.wait())
        followers = asyncio.create_task(self._heed_followers())
        try:
            await self._pump.run(ended, watch)
            if not ended.done():
                log.warning("trainer_did_not_leave")
                await self._trainer.kill()
        finally:
            for task in (ended, followers):
                task.cancel()
            await asyncio.gather(ended, followers, return_exceptions=True)

    async def _heed_followers(self) -> None:
        """One machine's fault is every machine's: the others would wait for it until their collectives time out."""
        if self._followers is not None:
            assert self._trainer is not None
            fault = await self._followers.fault()
            log.warning("follower_failed", code=fault.code, message=fault.message)
            await self._trainer.kill()

    async def _finish(self) -> None:
        outcome = self._pump.outcome
        if isinstance(outcome, Rejected):
            log.warning("attempt_rejected", code=outcome.code, message=outcome.message)
            await self._persist(attempts.fail, outcome.code, outcome.message, outcome.errors, self._report())
            return
        if outcome is None and self._grace_over:
            await asyncio.Event().wait()  # killed for not stopping, which is no crash: the job is being given back
        if outcome is None:
            await self._crashed()
            return
        await self._uploader.drained()
        if isinstance(outcome, Stopped):
            ended = await self._persist(attempts.release)
            log.info("attempt_stopped", reason=outcome.reason, state=ended.state)
            return
        try:
            await self._complete(outcome)
        except CancelPendingError:
            await self._persist(attempts.obey)

    async def _complete(self, outcome: Finished) -> None:
        failpoints.hit("completion.before")
        with tracing.span("complete"):
            await self._publish(outcome)
        failpoints.hit("completion.after")
        log.info("attempt_completed")

    async def _publish(self, outcome: Finished) -> None:
        if self._job.type == "ingest":
            await self._complete_ingest(outcome.result)
        elif self._job.type == "sample":
            await self._complete_sample()
        else:
            await self._complete_training(outcome.result)

    async def _complete_training(self, result: dict[str, object]) -> None:
        export = self._pump.export
        if export is None:
            raise NoOutputError("the trainer finished without an export")
        prefix = s3_keys.export(self._prefix)
        folder = Path(export.path)
        with tracing.span("upload export", {"fusion.bytes": export.manifest.size}, kind="client"):
            await uploading("the export", lambda: upload_folder(self._machine.storage, folder, prefix, export.manifest))
        config = json.loads(read_untrusted(folder / "config.json", LARGEST_JSON_BYTES))
        model = NewModel(
            name=output_name(self._job),
            params=export.params,
            config=config,
            s3_prefix=prefix,
            manifest=export.manifest,
        )
        await self._persist(attempts.complete_training, model, result, self._job)

    async def _complete_sample(self) -> None:
        """The pool goes beside its base, each file under its own hash: a zombie can only write the same again."""
        if not self._pump.shards:
            raise NoOutputError("the trainer finished without a pool")

        async def read(connection: Any) -> Any:
            return await queries.base_of_job(connection, job_id=self._job.id)

        base = await with_postgres(self._machine.pool, read, for_s=self._machine.settings.isolation_limit_s)
        for saved in self._pump.shards:
            key = s3_keys.pool_file(base["s3_prefix"], saved.file.sha256)
            path, file = Path(saved.path), saved.file
            await uploading("the pool", partial(upload_verified, self._machine.storage, path, key, file))
        await self._persist(rehearsal_pools.complete_sample, [saved.file for saved in self._pump.shards])

    async def _complete_ingest(self, result: dict[str, object]) -> None:
        prefix = s3_keys.shards(self._prefix)
        ordinals = {"train": 0, "heldout": 0}
        shards = []
        for saved in self._pump.shards:
            folder = Path(saved.path).parent
            shard = Manifest((saved.file,))
            await uploading("a shard", partial(upload_folder, self._machine.storage, folder, prefix, shard))
            key = f"{prefix}/{saved.file.rel}"
            shards.append(
                NewShard(split=saved.split, ordinal=ordinals[saved.split], s3_key=key, rows=saved.rows, file=saved.file)
            )
            ordinals[saved.split] += 1
        heldout = sum(saved.rows for saved in self._pump.shards if saved.split == "heldout")
        rows = sum(saved.rows for saved in self._pump.shards)
        log.info("ingest_read", **{key: value for key, value in result.items() if isinstance(value, int)})
        await self._persist(attempts.complete_ingest, shards, rows, heldout, self._report())

    def _report(self) -> dict[str, Any] | None:
        """The validation report of an ingest; None for other work."""
        if self._job.type != "ingest":
            return None
        try:
            report: dict[str, Any] = json.loads(read_untrusted(self._run_dir / REPORT_FILE, LARGEST_JSON_BYTES))
        except FileNotFoundError:
            return None
        return report

    # -- crashes -----------------------------------------------------------------------------------------------------

    async def _crashed(self) -> None:
        assert self._trainer is not None
        tail = self._trainer.log_tail()
        code, message = crash_reason.of_trainer(tail, self._trainer.returncode)
        if self._followers is not None:  # of a machine that is gone, the trainers know only that it does not answer
            with contextlib.suppress(TimeoutError):
                fault = await asyncio.wait_for(self._followers.fault(), self._machine.settings.lease_ttl_s)
                code, message = fault if code == "trainer_crashed" else (code, message)
        log.error("trainer_crashed", code=code, returncode=self._trainer.returncode, tail=tail)
        await self._save_and_report(code, message)

    async def _stalled(self, error: TrainerStalledError) -> None:
        """Alive and getting nowhere: have it say where, and free the device."""
        assert self._trainer is not None
        await self._trainer.dump_stacks()
        await self._trainer.kill()
        tail = self._trainer.log_tail()
        log.error("trainer_stalled", error=str(error), tail=tail)
        place = innermost_frame(tail)
        await self._save_and_report("trainer_stalled", f"{error}{f', at {place}' if place else ''}; it was killed")

    async def _save_and_report(self, code: str, message: str) -> None:
        """A crash, once the checkpoints that the trainer left behind are safe."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._machine.settings.drain_grace_s):
                await self._uploader.drained()
        await self._crash(code, message)

    async def _crash(self, code: str, message: str) -> None:
        self.crash_code = code
        self._machine.metrics.crashed(code)
        await self._persist(attempts.crash, code, message)

    async def _report_crash(self, error: Exception) -> None:
        code, message = crash_reason.of_daemon(error)
        log.error("attempt_crashed", code=code, error=repr(error), exc_info=error)
        shutil.rmtree(self._run_dir, ignore_errors=True)
        try:
            await self._crash(code, message)
        except Exception as unreported:  # noqa: BLE001 - the lease will run out and say it for us
            log.warning("crash_not_reported", error=repr(unreported))
