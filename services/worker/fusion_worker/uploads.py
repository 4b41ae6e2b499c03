"""Checkpoints and exports to S3: in the background, read back, and only then named by a row."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from fusion_core import failpoints, s3_keys, tracing
from fusion_core.db import checkpoints
from fusion_core.db.attempts import Attempt, LeaseLostError
from fusion_core.db.checkpoints import NewCheckpoint
from fusion_core.db.pool import Pool
from fusion_core.storage import ObjectCorruptError, Storage
from fusion_core.trainer_protocol import CHECKPOINT_FORMAT_VERSION, MANIFEST_FILE, CheckpointSaved, FileEntry, Manifest
from fusion_core.untrusted_files import inside

from fusion_worker.metrics import Metrics
from fusion_worker.retry import with_postgres
from fusion_worker.settings import WorkerSettings

log = structlog.get_logger()
PARALLEL_FILES = 4
TRIES = 3
FIRST_PAUSE_S = 1.0


class UploadFailedError(Exception):
    """S3 took the upload neither at the first try nor later."""


async def uploading(what: str, upload: Callable[[], Awaitable[None]]) -> None:
    """`upload`, a few times where S3 fails or hangs. Raises UploadFailedError, LeaseLostError."""
    for number in range(1, TRIES + 1):
        try:
            await upload()
        except LeaseLostError:
            raise
        except Exception as error:  # whatever S3 or its client raises
            cause = first_of(error)
            log.warning("upload_failed", what=what, number=number, error=repr(cause))
            if number == TRIES:
                raise UploadFailedError(f"{what} could not be uploaded in {TRIES} tries: {cause!r}") from error
            await asyncio.sleep(FIRST_PAUSE_S * 2**number)
        else:
            return


def first_of(error: BaseException) -> BaseException:
    """The first fault of a group of tasks: the others are its consequences, or the same again."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def upload_folder(storage: Storage, folder: Path, prefix: str, manifest: Manifest) -> None:
    """Upload every file of a manifest, read each back, and write the manifest object last.

    Raises ObjectCorruptError where what was read back differs, UntrustedPathError for a link out of the folder, and
    whatever S3 raises.
    """
    paths = {entry.rel: inside(folder, folder / entry.rel) for entry in manifest.files}
    slots = asyncio.Semaphore(PARALLEL_FILES)

    async def upload(rel: str) -> None:
        async with slots:
            await storage.upload_file(paths[rel], f"{prefix}/{rel}")

    async with asyncio.TaskGroup() as group:
        for entry in manifest.files:
            group.create_task(upload(entry.rel))
    for entry in manifest.files:
        await _verify(storage, f"{prefix}/{entry.rel}", entry)
    await storage.put_bytes(f"{prefix}/{MANIFEST_FILE}", msgspec.json.encode(manifest))


async def upload_verified(storage: Storage, path: Path, key: str, entry: FileEntry) -> None:
    """Upload one file and read it back. Raises ObjectCorruptError, and whatever S3 raises."""
    await storage.upload_file(path, key)
    await _verify(storage, key, entry)


async def _verify(storage: Storage, key: str, entry: FileEntry) -> None:
    if not await storage.matches(key, entry):
        raise ObjectCorruptError(f"{key} reads back with another SHA-256")


class CheckpointUploader:
    """One upload in flight; of those that wait, turn ends and the newest survive."""

    def __init__(
        self, pool: Pool, storage: Storage, settings: WorkerSettings, attempt: Attempt, metrics: Metrics
    ) -> None:
        self._pool = pool
        self._storage = storage
        self._settings = settings
        self._attempt = attempt
        self._metrics = metrics
        self._prefix = s3_keys.attempt(attempt.job_id, attempt.epoch, attempt.attempt_id)
        self._waiting: list[CheckpointSaved] = []
        self._changed = asyncio.Condition()
        self._uploading = False

    async def add(self, saved: CheckpointSaved) -> None:
        async with self._changed:
            for older in [other for other in self._waiting if not other.turn_end]:
                self._waiting.remove(older)
                shutil.rmtree(older.path, ignore_errors=True)
            self._waiting.append(saved)
            self._changed.notify_all()

    async def drained(self) -> None:
        """Return once everything added so far has been committed or given up."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._waiting and not self._uploading)

    async def run(self) -> None:
        """Upload until cancelled. Raises LeaseLostError."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._waiting))
                saved = self._waiting.pop(0)
                self._uploading = True
            try:
                await self._try_upload(saved)
            finally:
                shutil.rmtree(saved.path, ignore_errors=True)
                async with self._changed:
                    self._uploading = False
                    self._changed.notify_all()

    async def _try_upload(self, saved: CheckpointSaved) -> None:
        """A fault of S3 costs a checkpoint, never the run; its customer reads how old the newest one is."""
        try:
            await uploading(f"the checkpoint of step {saved.step}", lambda: self._upload(saved))
        except UploadFailedError as error:
            self._metrics.given_up.inc()
            log.error("checkpoint_given_up", step=saved.step, error=str(error))
            await self._tell(saved, str(error))

    async def _tell(self, saved: CheckpointSaved, reason: str) -> None:
        async def note(connection: Any) -> None:
            await checkpoints.note_failed_checkpoint(connection, self._attempt, saved.step, reason)

        await with_postgres(self._pool, note, for_s=self._settings.isolation_limit_s)

    async def _upload(self, saved: CheckpointSaved) -> None:
        prefix = s3_keys.checkpoint(self._prefix, saved.step)
        about = {"fusion.step": saved.step, "fusion.bytes": saved.manifest.size}
        with (
            tracing.span("upload checkpoint", about, kind="client"),
            self._metrics.upload_seconds.time(),
            self._metrics.upload_failures.count_exceptions(),
        ):
            await upload_folder(self._storage, Path(saved.path), prefix, saved.manifest)
        self._metrics.upload_bytes.observe(saved.manifest.size)
        checkpoint = NewCheckpoint(
            step=saved.step,
            turn_end=saved.turn_end,
            s3_prefix=prefix,
            manifest=saved.manifest,
            format_version=CHECKPOINT_FORMAT_VERSION,
        )

        async def commit(connection: Any) -> None:
            await checkpoints.commit_checkpoint(connection, self._attempt, checkpoint)

        failpoints.hit("checkpoint_row.before")
        await with_postgres(self._pool, commit, for_s=self._settings.isolation_limit_s)
        failpoints.hit("checkpoint_row.after")
        log.info("checkpoint_committed", step=saved.step, bytes=saved.manifest.size)
