"""Pruning: objects that no row names, whose writer is over, and that are older than a day, are deleted.

The row is looked at again at the moment of deletion. An attempt that is over can never name an object again, since
every worker's write is fenced; so an object without a row then stays without one. An object that Fusion did not name,
or whose job this database has never heard of, is left alone: a wrong database must not empty a bucket.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError
from fusion_core.db.pool import Pool, queries
from fusion_core.storage import ListedObject, Storage

from fusion_orchestrator.base_model_import import IMPORTING

DEFAULT_MIN_AGE = timedelta(days=1)

log = structlog.get_logger()


class PruneReport(msgspec.Struct):
    """How many of each were deleted, or would have been in a dry run. `unknown` were left alone."""

    attempt_objects: int = 0
    upload_objects: int = 0
    base_model_objects: int = 0
    multipart_uploads: int = 0
    unknown: int = 0


class Pruner:
    """One pass over a bucket. Several may run at once: deleting twice is harmless.

    The files of a deleted model are kept for `model_days`.
    """

    def __init__(
        self,
        pool: Pool,
        storage: Storage,
        *,
        model_days: int,
        min_age: timedelta = DEFAULT_MIN_AGE,
        dry_run: bool = False,
    ) -> None:
        self._pool = pool
        self._storage = storage
        self._min_age = min_age
        self._before = datetime.now(UTC) - min_age
        self._model_days = model_days
        self._dry_run = dry_run
        self.report = PruneReport()

    async def run(self) -> PruneReport:
        """Prune everything. Raises OSError, TimeoutError, botocore's or asyncpg's errors; what was deleted stays so."""
        await self._attempts()
        await self._uploads()
        await self._base_models()
        await self._multipart()
        log.info("pruned", dry_run=self._dry_run, **msgspec.structs.asdict(self.report))
        return self.report

    async def _attempts(self) -> None:
        """jobs/<job>/<epoch>-<attempt>/...: the leftovers of attempts that are over."""
        async for folder, objects in grouped(self._storage.list_prefix("jobs/"), depth=3):
            old = [item.key for item in objects if item.modified_at < self._before]
            attempt = parse_attempt(folder)
            if attempt is None:
                self.report.unknown += len(old)
            elif old:
                await self._attempt(*attempt, old)

    async def _attempt(self, job_id: UUID, attempt_id: UUID, keys: list[str]) -> None:
        row = await queries.attempt_names(self._pool, job_id=job_id, attempt_id=attempt_id, model_days=self._model_days)
        if row is None:
            self.report.unknown += len(keys)
        elif not row["live"]:
            named = tuple(row["names"])
            self.report.attempt_objects += await self._delete([key for key in keys if not is_named(key, named)])

    async def _uploads(self) -> None:
        """tmp/<account>/<upload>/<filename>: uploads whose time is over or whose dataset has been read."""
        async for folder, objects in grouped(self._storage.list_prefix("tmp/"), depth=3):
            upload_id = parse_uuid(folder.split("/")[-1])
            old = [item.key for item in objects if item.modified_at < self._before]
            if upload_id is None:
                self.report.unknown += len(old)
            elif old and not await queries.upload_is_needed(self._pool, upload_id=upload_id):
                self.report.upload_objects += await self._delete(old)

    async def _base_models(self) -> None:
        """base-models/<id>/...: imports that were broken off, known by the file that every import starts with."""
        async for folder, objects in grouped(self._storage.list_prefix("base-models/"), depth=2, most=100_000):
            base_model_id = parse_uuid(folder.split("/")[-1])
            marker = f"{folder}/{IMPORTING}"
            keys = [item.key for item in objects]
            if base_model_id is None or marker not in keys or any(o.modified_at >= self._before for o in objects):
                continue
            row = await queries.get_base_model(self._pool, base_model_id=base_model_id)
            self.report.base_model_objects += await self._delete(keys if row is None else [marker])

    async def _multipart(self) -> None:
        if self._dry_run:
            return
        try:
            self.report.multipart_uploads = await self._storage.abort_stale_multipart(self._min_age)
        except (BotoCoreError, ClientError) as error:
            # Not every S3 lists unfinished uploads; those that do not, forget them by themselves.
            log.info("multipart_not_listed", error=repr(error))

    async def _delete(self, keys: list[str]) -> int:
        if keys and not self._dry_run:
            await self._storage.delete(keys)
        for key in keys:
            log.info("object_pruned", key=key, dry_run=self._dry_run)
        return len(keys)


async def grouped(
    objects: AsyncIterator[ListedObject], depth: int, most: int = 500
) -> AsyncIterator[tuple[str, list[ListedObject]]]:
    """Neighbours that share the first `depth` parts of their keys; a folder of more than `most` comes in pieces."""
    folder, group = "", list[ListedObject]()
    async for item in objects:
        its_folder = "/".join(item.key.split("/")[:depth])
        if group and (its_folder != folder or len(group) == most):
            yield folder, group
            group = []
        folder = its_folder
        group.append(item)
    if group:
        yield folder, group


def parse_attempt(folder: str) -> tuple[UUID, UUID] | None:
    """(job id, attempt id) of `jobs/<job>/<epoch>-<attempt>`, the inverse of `s3_keys.attempt`."""
    _, job, *rest = folder.split("/")
    epoch, _, attempt = (rest or [""])[0].partition("-")
    job_id, attempt_id = parse_uuid(job), parse_uuid(attempt)
    return (job_id, attempt_id) if job_id and attempt_id and epoch.isdecimal() else None


def parse_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def is_named(key: str, names: tuple[str, ...]) -> bool:
    """A row names an object by its key or by a folder above it."""
    return any(key == name or key.startswith(f"{name}/") for name in names)
