"""Bringing a job's inputs to local disk and writing run.json."""

from pathlib import Path
from typing import Any

import msgspec
import structlog
from fusion_core import s3_keys
from fusion_core.db import checkpoints
from fusion_core.db.attempts import Attempt
from fusion_core.db.checkpoints import Checkpoint
from fusion_core.db.pool import Pool, queries
from fusion_core.db.rows import JobRow
from fusion_core.job_spec import ContractSpec, FinetuneSpec, IngestSpec, SampleSpec, TrainSpec, read_customer_spec
from fusion_core.storage import (
    FILE_DEADLINE_S,
    ObjectChangedError,
    ObjectCorruptError,
    ObjectMissingError,
    Storage,
)
from fusion_core.trainer_protocol import (
    CHECKPOINT_FORMAT_VERSION,
    MANIFEST_FILE,
    ContractRun,
    FileEntry,
    FinetuneRun,
    IngestInput,
    IngestRun,
    Manifest,
    Run,
    SampleRun,
    TrainRun,
    write_run,
)

from fusion_worker.group_link import StagedFile
from fusion_worker.input_cache import InputCache
from fusion_worker.retry import with_postgres
from fusion_worker.settings import WorkerSettings

log = structlog.get_logger()
SLOWEST_DOWNLOAD = 5 * 2**20  # bytes a second that an upload of any size must come with


class UploadRejectedError(Exception):
    """An upload is gone or is no longer what was registered: no retry can mend it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def output_name(job: JobRow) -> str:
    """The name that the job's model gets: the customer's, or one made of the job's id."""
    return job.spec["hyperparams"].get("output_name") or f"model-{job.id}"


class Stager:
    """Stages one attempt's inputs into its run directory."""

    def __init__(self, pool: Pool, storage: Storage, cache: InputCache, settings: WorkerSettings) -> None:
        self._pool = pool
        self._storage = storage
        self._cache = cache
        self._settings = settings
        self.staged: list[StagedFile] = []
        """What was brought into the run directory, for the other machines of a group."""

    async def stage(self, job: JobRow, attempt: Attempt, run_dir: Path) -> Run:
        """Raises UploadRejectedError, ObjectMissingError, ObjectCorruptError, OSError, or a lost lease."""
        if job.type == "ingest":
            run: Run = await self._ingest(job, run_dir)
        elif job.type == "sample":
            run = await self._sample(job, run_dir)
        else:
            run = await self._engine_job(job, attempt, run_dir)
        write_run(run_dir, run)
        return run

    async def _rows(self, query: Any, **parameters: Any) -> list[Any]:
        async def read(connection: Any) -> list[Any]:
            return [row async for row in query(connection, **parameters)]

        return await with_postgres(self._pool, read, for_s=self._settings.isolation_limit_s)

    async def _row(self, query: Any, **parameters: Any) -> Any:
        async def read(connection: Any) -> Any:
            return await query(connection, **parameters)

        return await with_postgres(self._pool, read, for_s=self._settings.isolation_limit_s)

    async def _place(self, key: str, entry: FileEntry, run_dir: Path, path: Path) -> None:
        await self._cache.place(key, entry, path)
        self._note(key, entry, run_dir, path)

    def _note(self, key: str, entry: FileEntry, run_dir: Path, path: Path) -> None:
        rel = path.relative_to(run_dir).as_posix()
        self.staged.append(StagedFile(key, FileEntry(rel, entry.size, entry.sha256)))

    async def _place_all(self, prefix: str, manifest: Manifest, run_dir: Path, folder: Path) -> None:
        for entry in manifest.files:
            await self._place(f"{prefix}/{entry.rel}", entry, run_dir, folder / entry.rel)

    async def _engine_job(self, job: JobRow, attempt: Attempt, run_dir: Path) -> TrainRun | FinetuneRun | ContractRun:
        spec = read_customer_spec(job.type, job.spec)
        shards = await self._shards(job, run_dir)
        inputs: dict[str, Any] = await self._base(job, run_dir) | {
            "base_name": spec.base_model_name,
            "output_name": output_name(job),
            "dataset_name": await self._row(queries.dataset_name_of_job, job_id=job.id) or "",
            "train_shards": shards["train"],
            "heldout_shards": shards["heldout"],
            "rehearsal_files": await self._rehearsal(job, run_dir),
            "pool_files": await self._pool_files(job, run_dir),
            "checkpoint_dir": await self._checkpoint(job, attempt, run_dir),
            "checkpoint_every_s": self._settings.checkpoint_every_s,
        }
        match spec:
            case TrainSpec():
                return TrainRun(hyperparams=spec.hyperparams, growth_plan=spec.growth_plan, **inputs)
            case FinetuneSpec():
                return FinetuneRun(hyperparams=spec.hyperparams, **inputs)
            case ContractSpec():
                return ContractRun(hyperparams=spec.hyperparams, contraction_plan=spec.contraction_plan, **inputs)

    async def _sample(self, job: JobRow, run_dir: Path) -> SampleRun:
        spec = msgspec.convert(job.spec, SampleSpec)
        inputs = await self._base(job, run_dir)
        return SampleRun(rows=spec.rows, seq_len=spec.seq_len, seed=spec.seed, **inputs)

    async def _base(self, job: JobRow, run_dir: Path) -> dict[str, Any]:
        """The base's files on local disk, and what run.json says for every kind of work."""
        base = await self._row(queries.base_of_job, job_id=job.id)
        await self._place_all(base["s3_prefix"], msgspec.convert(base["manifest"], Manifest), run_dir, run_dir / "base")
        return {
            "job_id": str(job.id),
            "lease_epoch": job.lease_epoch,
            "base_dir": str(run_dir / "base"),
            "num_processes": self._settings.world_size,
            "threads": self._settings.threads,
        }

    async def _shards(self, job: JobRow, run_dir: Path) -> dict[str, tuple[str, ...]]:
        """Local paths by split; both are empty where the job has no dataset."""
        shards: dict[str, list[str]] = {"train": [], "heldout": []}
        for number, row in enumerate(await self._rows(queries.shards_of_dataset, dataset_id=job.dataset_id)):
            path = run_dir / "data" / f"{row['split']}-{number:05d}.jsonl"
            await self._place(row["s3_key"], FileEntry(path.name, row["bytes"], row["sha256"]), run_dir, path)
            shards[row["split"]].append(str(path))
        return {split: tuple(paths) for split, paths in shards.items()}

    async def _pool_files(self, job: JobRow, run_dir: Path) -> tuple[str, ...]:
        """Text sampled from the base; without it the trainer samples a little for itself."""
        found = await self._row(queries.pool_of_job, job_id=job.id)
        if found is None:
            return ()
        base = await self._row(queries.base_of_job, job_id=job.id)
        entries = msgspec.convert(found, Manifest).files
        paths = [run_dir / "pool" / entry.rel for entry in entries]
        for entry, path in zip(entries, paths, strict=True):
            await self._place(s3_keys.pool_file(base["s3_prefix"], entry.sha256), entry, run_dir, path)
        return tuple(str(path) for path in paths)

    async def _rehearsal(self, job: JobRow, run_dir: Path) -> tuple[str, ...]:
        row = await self._row(queries.rehearsal_of_job, job_id=job.id)
        if row is None:
            return ()
        manifest = msgspec.convert(row["rehearsal"], Manifest)
        await self._place_all(row["s3_prefix"], manifest, run_dir, run_dir / "rehearsal")
        return tuple(str(run_dir / "rehearsal" / entry.rel) for entry in manifest.files)

    async def _checkpoint(self, job: JobRow, attempt: Attempt, run_dir: Path) -> str | None:
        """The newest checkpoint that can be read; the others are marked lost on the way."""
        folder = run_dir / "resume"

        async def committed(connection: Any) -> list[Checkpoint]:
            return await checkpoints.readable_checkpoints(connection, job.id)

        limit = self._settings.isolation_limit_s
        for checkpoint in await with_postgres(self._pool, committed, for_s=limit):
            try:
                if checkpoint.format_version != CHECKPOINT_FORMAT_VERSION:
                    raise ObjectCorruptError(f"checkpoint format {checkpoint.format_version} is not known here")
                folder.mkdir(exist_ok=True)
                for entry in checkpoint.manifest.files:
                    await self._storage.download_file(f"{checkpoint.s3_prefix}/{entry.rel}", folder / entry.rel, entry)
                (folder / MANIFEST_FILE).write_bytes(msgspec.json.encode(checkpoint.manifest))
            except (ObjectMissingError, ObjectCorruptError) as error:
                log.warning("checkpoint_lost", step=checkpoint.step, error=str(error))
                reason = str(error)

                async def mark(connection: Any, lost: Checkpoint = checkpoint, reason: str = reason) -> None:
                    await checkpoints.mark_checkpoint_lost(connection, attempt, lost, reason)

                await with_postgres(self._pool, mark, for_s=limit)
            else:
                for entry in checkpoint.manifest.files:
                    self._note(f"{checkpoint.s3_prefix}/{entry.rel}", entry, run_dir, folder / entry.rel)
                log.info("resuming", step=checkpoint.step)
                return str(folder)
        return None

    async def _fetch_upload(self, row: Any, path: Path) -> None:
        """One read of the object that was registered: its URL may still take another. Raises UploadRejectedError."""
        deadline_s = FILE_DEADLINE_S + row["size"] / SLOWEST_DOWNLOAD
        try:
            await self._storage.download_file(row["s3_key"], path, deadline_s=deadline_s, etag=row["etag"])
        except ObjectMissingError:
            raise UploadRejectedError("upload_missing", f"{row['filename']} is gone; upload it again") from None
        except ObjectChangedError:
            message = f"{row['filename']} changed after it was registered; upload and register it again"
            raise UploadRejectedError("upload_changed", message) from None

    async def _ingest(self, job: JobRow, run_dir: Path) -> IngestRun:
        spec = msgspec.convert(job.spec, IngestSpec)
        inputs = []
        for number, row in enumerate(await self._rows(queries.uploads_of_dataset, dataset_id=job.dataset_id)):
            path = run_dir / "inputs" / f"{number:05d}"
            path.parent.mkdir(exist_ok=True)
            await self._fetch_upload(row, path)
            inputs.append(IngestInput(str(path), row["filename"]))
        return IngestRun(
            job_id=str(job.id),
            lease_epoch=job.lease_epoch,
            inputs=tuple(inputs),
            policy=spec.policy,
            heldout_percent=spec.heldout_percent,
        )
