"""The customer's side of Fusion in Python: uploads, datasets, jobs, models and keys, and the waits around them."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fusion_client import storage
from fusion_client.errors import ConfigurationError, DatasetFailedError, DeadlineError
from fusion_client.event_stream import follow
from fusion_client.models import (
    BaseModel,
    Checkpoint,
    Dataset,
    DatasetReport,
    DownloadManifest,
    Estimate,
    Event,
    Failure,
    Job,
    JobDetail,
    JobResult,
    Key,
    Metrics,
    Model,
    NewKey,
    PartedUpload,
    PresignedUpload,
    SignedPart,
)
from fusion_client.storage import Progress
from fusion_client.transport import Retries, Transport, new_key, segment
from fusion_client.webhooks import Webhooks

DAY_S = 86_400.0
ONE_PUT_BYTES = 2**28  # larger files go in parts; S3 takes at most 5 GiB in one
_URLS_AT_ONCE = 32
_CONTENT_TYPES = {".jsonl": "application/jsonl", ".ndjson": "application/x-ndjson", ".txt": "text/plain"}


class Fusion:
    """A client of one account. Use it as a context manager, or call close().

    Every method raises ConnectionFailedError, ApiError, InvalidIdError or UnexpectedAnswerError (the tree is in
    fusion_client.errors). Requests that are safe to repeat are repeated with growing pauses, honouring Retry-After.
    """

    def __init__(self, url: str, api_key: str, *, retries: Retries | None = None) -> None:
        """`url` is the API's address, like http://127.0.0.1:8000. Raises ConfigurationError."""
        self._transport = Transport(url, api_key, retries or Retries())
        self.webhooks = Webhooks(self._transport)

    @classmethod
    def from_environment(cls) -> Self:
        """Reads FUSION_API_URL and FUSION_API_KEY. Raises ConfigurationError naming what is missing."""
        names = ("FUSION_API_URL", "FUSION_API_KEY")
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise ConfigurationError(f"set {' and '.join(missing)} (a local stack writes both to .fusion/env)")
        return cls(*(os.environ[name] for name in names))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.http.close()

    # -- uploads and datasets --------------------------------------------------------------------------------------

    def presign(self, filename: str, content_type: str) -> PresignedUpload:
        """POST /api/uploads/presign: where to PUT a file; the PUT must carry the same content type."""
        body = {"filename": filename, "content_type": content_type}
        return self._transport.post("/api/uploads/presign", PresignedUpload, body, new_key())

    def put_file(
        self, upload: PresignedUpload, path: Path, content_type: str, on_progress: Progress | None = None
    ) -> None:
        """Stream a file to its presigned URL. Raises TransferError or OSError."""
        storage.put_file(upload.url, path, content_type, self._transport.retries, on_progress)

    def upload(self, path: Path, on_progress: Progress | None = None) -> str:
        """Send one file, a large one in parts; answers its upload id. Raises TransferError or OSError."""
        content_type = _CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream")
        if path.stat().st_size > ONE_PUT_BYTES:
            return self._upload_in_parts(path, content_type, on_progress)
        upload = self.presign(path.name, content_type)
        self.put_file(upload, path, content_type, on_progress)
        return upload.upload_id

    def _upload_in_parts(self, path: Path, content_type: str, on_progress: Progress | None) -> str:
        """A broken connection costs a part, not the file; URLs are asked for as they are needed, since they expire."""
        size, done = path.stat().st_size, 0

        def count(part: int) -> None:
            nonlocal done
            done += part
            if on_progress is not None:
                on_progress(done, size)

        body = {"filename": path.name, "content_type": content_type, "size": size}
        begun = self._transport.post("/api/uploads/multipart", PartedUpload, body, new_key())
        at = f"/api/uploads/{segment(begun.upload_id)}"
        for start in range(0, len(begun.missing), _URLS_AT_ONCE):
            wanted = {"part_numbers": begun.missing[start : start + _URLS_AT_ONCE]}
            parts = self._transport.post(f"{at}/parts", list[SignedPart], wanted, new_key())
            storage.put_parts(parts, path, begun.part_size, self._transport.retries, count)
        return self._transport.post(f"{at}/complete", PartedUpload, None, new_key()).upload_id

    def create_dataset(self, upload_ids: Sequence[str], name: str | None = None, policy: str | None = None) -> Dataset:
        """POST /api/datasets: read, check and shard uploaded files, which takes a while (see wait_dataset).

        `policy` says what a bad row does: `fail` the dataset (the default), or `skip`: be left out and counted.
        """
        body: dict[str, Any] = {"upload_ids": list(upload_ids)}
        body |= {key: value for key, value in (("name", name), ("policy", policy)) if value}
        return self._transport.post("/api/datasets", Dataset, body, new_key())

    def get_dataset(self, dataset_id: str) -> Dataset:
        """GET /api/datasets/{id}."""
        return self._transport.get(f"/api/datasets/{segment(dataset_id)}", Dataset)

    def list_datasets(self, limit: int = 100) -> list[Dataset]:
        """GET /api/datasets, newest first."""
        return self._transport.get_pages("/api/datasets", Dataset, limit)

    def get_dataset_report(self, dataset_id: str) -> DatasetReport:
        """GET /api/datasets/{id}/report, with all errors that it lists: a thousand at most."""
        return self._transport.get(f"/api/datasets/{segment(dataset_id)}/report?limit=1000", DatasetReport)

    def wait_dataset(self, dataset_id: str, timeout_s: float = 3600.0, poll_s: float = 1.0) -> Dataset:
        """Wait until a dataset is ready. Raises DatasetFailedError with the first wrong lines, or DeadlineError."""
        deadline = time.monotonic() + timeout_s
        while True:
            dataset = self.get_dataset(dataset_id)
            if dataset.status == "ready":
                return dataset
            if dataset.status == "failed":
                error = dataset.error or Failure(code="unknown", message="the dataset could not be read")
                raise DatasetFailedError(error.code, error.message, error.errors)
            if time.monotonic() + poll_s > deadline:
                raise DeadlineError(f"dataset {dataset_id} is still {dataset.status} after {timeout_s:.0f} s")
            time.sleep(poll_s)

    # -- base models, prices and jobs ------------------------------------------------------------------------------

    def list_base_models(self, limit: int = 1000) -> list[BaseModel]:
        """GET /api/base-models."""
        return self._transport.get_pages("/api/base-models", BaseModel, limit)

    def estimate(self, request: Mapping[str, Any]) -> Estimate:
        """POST /api/pricing/estimate: free, exact, nothing is created.

        `request` has a `job`, the body of `submit`; or `type`, `params_before`, `params_after` and `tokens`, or the
        settings that tokens follow from.
        """
        asked = dict(request)
        if "job" in asked:  # a body of POST /jobs names a key, which an estimate does not use
            asked["job"] = {"idempotency_key": "estimate", **asked["job"]}
        return self._transport.post("/api/pricing/estimate", Estimate, asked, new_key())

    def create_job(
        self,
        *,
        base_model_id: str,
        dataset_id: str,
        hyperparams: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """POST /api/jobs: start a training job.

        The same `idempotency_key` always answers the same job; without one, each call starts a job of its own.
        """
        body = {"type": "train", "base_model_id": base_model_id, "dataset_id": dataset_id}
        return self.submit(body | {"hyperparams": dict(hyperparams or {})}, idempotency_key)

    def submit(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> Job:
        """POST /api/jobs with a whole body, of any type: train, finetune or contract."""
        key = idempotency_key or str(body.get("idempotency_key") or new_key())
        return self._transport.post("/api/jobs", Job, {**body, "idempotency_key": key}, key)

    def get_job(self, job_id: str) -> JobDetail:
        """GET /api/jobs/{id}."""
        return self._transport.get(f"/api/jobs/{segment(job_id)}", JobDetail)

    def list_jobs(self, limit: int = 100, *, labels: Mapping[str, str] | None = None, **filters: str) -> list[Job]:
        """GET /api/jobs, newest first. Filters: `type`, `status`, `base_model`, `dataset`; a job has all `labels`."""
        wanted: dict[str, Any] = {**filters, "label": [f"{key}={value}" for key, value in (labels or {}).items()]}
        return self._transport.get_pages("/api/jobs", Job, limit, wanted)

    def cancel_job(self, job_id: str) -> JobDetail:
        """POST /api/jobs/{id}/cancel: legal in every state; a job that has ended is answered as it is."""
        return self._transport.post(f"/api/jobs/{segment(job_id)}/cancel", JobDetail, None, new_key())

    def stop_job(self, job_id: str) -> JobDetail:
        """POST /api/jobs/{id}/stop: it saves a checkpoint, and waits to be resumed or cancelled."""
        return self._transport.post(f"/api/jobs/{segment(job_id)}/stop", JobDetail, None, new_key())

    def resume_job(self, job_id: str, checkpoint_id: str | None = None) -> JobDetail:
        """POST /api/jobs/{id}/resume: the job goes on, or from an older checkpoint a new job, which is answered."""
        body = {"checkpoint_id": checkpoint_id} if checkpoint_id else None
        return self._transport.post(f"/api/jobs/{segment(job_id)}/resume", JobDetail, body, new_key())

    def list_checkpoints(self, job_id: str, limit: int = 100) -> list[Checkpoint]:
        """GET /api/jobs/{id}/checkpoints, newest first."""
        return self._transport.get_pages(f"/api/jobs/{segment(job_id)}/checkpoints", Checkpoint, limit)

    def events(self, job_id: str, after: int = 0, timeout_s: float = DAY_S) -> Iterator[Event]:
        """The job's events with seq > `after`, live, until one ends the job; reconnects by itself.

        Raises DeadlineError when `timeout_s` is over.
        """
        return follow(self._transport, f"/api/jobs/{segment(job_id)}/events", after, timeout_s)

    def metrics(self, job_id: str, since_step: int = 0, points: int | None = None) -> Metrics:
        """GET /api/jobs/{id}/metrics: the training curve after a step, at most 10,000 points at a time.

        With `points` (4 to 2,000) all of it in so many, every extreme of the loss among them.
        """
        asked = {"since_step": since_step} | ({"points": points} if points is not None else {})
        return self._transport.get(f"/api/jobs/{segment(job_id)}/metrics", Metrics, asked)

    def result(self, job_id: str) -> JobResult:
        """GET /api/jobs/{id}/result. Raises NotFoundError until the job has completed."""
        return self._transport.get(f"/api/jobs/{segment(job_id)}/result", JobResult)

    # -- models ----------------------------------------------------------------------------------------------------

    def list_models(self, limit: int = 100) -> list[Model]:
        """GET /api/models, newest first."""
        return self._transport.get_pages("/api/models", Model, limit)

    def download_manifest(self, model_id: str) -> DownloadManifest:
        """GET /api/models/{id}/download: the files of a model with short-lived URLs."""
        return self._transport.get(f"/api/models/{segment(model_id)}/download", DownloadManifest)

    def download_model(
        self, model_id: str, destination: Path, parallel: int = 4, on_progress: Progress | None = None
    ) -> DownloadManifest:
        """Fetch all files of a model, verified; call it again to go on after an interruption.

        Raises TransferError (ChecksumError, UnsafePathError) or OSError; on_progress may be called by any thread,
        one at a time.
        """
        manifest = self.download_manifest(model_id)
        storage.download(
            manifest,
            destination,
            refresh=lambda: self.download_manifest(model_id),
            parallel=parallel,
            retries=self._transport.retries,
            on_progress=on_progress,
        )
        return manifest

    # -- keys ------------------------------------------------------------------------------------------------------

    def list_keys(self, limit: int = 100) -> list[Key]:
        """GET /api/keys, newest first."""
        return self._transport.get_pages("/api/keys", Key, limit)

    def create_key(self, name: str, scopes: Sequence[str]) -> NewKey:
        """POST /api/keys. Not repeated on failure: the secret of a repeated answer would be gone."""
        return self._transport.post("/api/keys", NewKey, {"name": name, "scopes": list(scopes)})

    def revoke_key(self, key_id: str) -> None:
        """DELETE /api/keys/{id}: effective at once."""
        self._transport.request("DELETE", f"/api/keys/{segment(key_id)}")
