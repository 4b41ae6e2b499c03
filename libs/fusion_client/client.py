"""The customer's side of Fusion in Python: one method an operation of the API, and the waits around them."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from fusion_client import storage
from fusion_client.account_models import (
    Account,
    Estimate,
    Key,
    LedgerLine,
    NewKey,
    Overview,
    Prices,
    Recommendation,
    Usage,
)
from fusion_client.dataset_models import (
    Dataset,
    DatasetReport,
    PresignedUpload,
    Preview,
    TokenCount,
)
from fusion_client.errors import ConfigurationError, DatasetFailedError, DeadlineError
from fusion_client.event_stream import follow
from fusion_client.models import (
    Ancestor,
    BaseModel,
    BaseModelDetail,
    Checkpoint,
    Compute,
    DownloadManifest,
    Event,
    Failure,
    Job,
    JobDetail,
    JobResult,
    Metrics,
    Model,
)
from fusion_client.storage import Progress
from fusion_client.transport import Retries, Transport, new_key, segment
from fusion_client.uploads import Uploads
from fusion_client.webhooks import Webhooks

DAY_S = 86_400.0
ONE_PUT_BYTES = 2**28  # larger files go in parts; S3 takes at most 5 GiB in one
_CONTENT_TYPES = {".jsonl": "application/jsonl", ".ndjson": "application/x-ndjson", ".txt": "text/plain"}


class Fusion:
    """A client of one account. Use it as a context manager, or call close().

    Every method raises ConnectionFailedError, ApiError, InvalidIdError or UnexpectedAnswerError (the tree is in
    fusion_client.errors). Requests that are safe to repeat are repeated with growing pauses, honouring Retry-After.
    """

    def __init__(self, url: str, api_key: str, *, retries: Retries | None = None) -> None:
        """`url` is the API's address, like http://127.0.0.1:8000. Raises ConfigurationError."""
        self._transport = Transport(url, api_key, retries or Retries())
        self.uploads = Uploads(self._transport)
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
            return self.uploads.send(path, content_type, on_progress)
        upload = self.presign(path.name, content_type)
        self.put_file(upload, path, content_type, on_progress)
        return upload.upload_id

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

    def preview_dataset(self, dataset_id: str, rows: int = 10) -> Preview:
        """GET /api/datasets/{id}/preview: the first rows, a hundred at most, as they are trained on."""
        return self._transport.get(f"/api/datasets/{segment(dataset_id)}/preview", Preview, {"rows": rows})

    def count_tokens(self, dataset_id: str, base_model_id: str) -> TokenCount:
        """GET /api/datasets/{id}/tokens: what the dataset comes to for a base model, or a model of yours."""
        asked = {"base_model_id": base_model_id}
        return self._transport.get(f"/api/datasets/{segment(dataset_id)}/tokens", TokenCount, asked)

    def delete_dataset(self, dataset_id: str) -> None:
        """DELETE /api/datasets/{id}. Raises ConflictError while a job uses it."""
        self._transport.request("DELETE", f"/api/datasets/{segment(dataset_id)}")

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

    def get_base_model(self, base_model_id: str) -> BaseModelDetail:
        """GET /api/base-models/{id}."""
        return self._transport.get(f"/api/base-models/{segment(base_model_id)}", BaseModelDetail)

    def get_prices(self) -> Prices:
        """GET /api/pricing: what new jobs are created at."""
        return self._transport.get("/api/pricing", Prices)

    def recommend(self, base_model_id: str, dataset_id: str, turns: int | None = None) -> Recommendation:
        """POST /api/training/recommend: hyperparameters to start from, each with its reason, and their price."""
        body = {"base_model_id": base_model_id, "dataset_id": dataset_id} | ({"turns": turns} if turns else {})
        return self._transport.post("/api/training/recommend", Recommendation, body, new_key())

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
        priority: str | None = None,
        compute: Compute | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """POST /api/jobs: start a training job; what is not given is the server's to choose.

        `priority` is high, normal or low. The same `idempotency_key` always answers the same job; without one, each
        call starts a job of its own.
        """
        body: dict[str, Any] = {"type": "train", "base_model_id": base_model_id, "dataset_id": dataset_id}
        body |= {key: value for key, value in (("priority", priority), ("compute", compute)) if value is not None}
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

    def get_model(self, model_id: str) -> Model:
        """GET /api/models/{id}."""
        return self._transport.get(f"/api/models/{segment(model_id)}", Model)

    def change_model(self, model_id: str, **fields: Any) -> Model:
        """PATCH /api/models/{id}: `name`, `expires_at` (None: never); what is left out stays as it is."""
        return self._transport.patch(f"/api/models/{segment(model_id)}", Model, fields)

    def delete_model(self, model_id: str) -> None:
        """DELETE /api/models/{id}. Raises ConflictError while a job uses it."""
        self._transport.request("DELETE", f"/api/models/{segment(model_id)}")

    def lineage(self, model_id: str) -> list[Ancestor]:
        """GET /api/models/{id}/lineage: the model, then its parents up to the one made from a base model."""
        return self._transport.get(f"/api/models/{segment(model_id)}/lineage", list[Ancestor])

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

    # -- the account -----------------------------------------------------------------------------------------------

    def get_account(self) -> Account:
        """GET /api/account: limits, and what this month has cost."""
        return self._transport.get("/api/account", Account)

    def change_account(self, **fields: float | None) -> Account:
        """PATCH /api/account: `spend_limit_usd`, `spend_warning_usd` (None: none); what is left out stays as it is."""
        return self._transport.patch("/api/account", Account, fields)

    def get_overview(self, days: int = 30) -> Overview:
        """GET /api/overview: counts, and what the last days used."""
        return self._transport.get("/api/overview", Overview, {"days": days})

    def get_usage(self, days: int = 14) -> Usage:
        """GET /api/usage: what was used on each of the last days, 366 at most."""
        return self._transport.get("/api/usage", Usage, {"days": days})

    def list_ledger(self, limit: int = 100, job_id: str | None = None) -> list[LedgerLine]:
        """GET /api/ledger: what each job that has ended cost, newest first; with `job_id` that job alone."""
        return self._transport.get_pages("/api/ledger", LedgerLine, limit, {"job_id": job_id} if job_id else None)

    # -- keys ------------------------------------------------------------------------------------------------------

    def list_keys(self, limit: int = 100) -> list[Key]:
        """GET /api/keys, newest first."""
        return self._transport.get_pages("/api/keys", Key, limit)

    def create_key(self, name: str, scopes: Sequence[str], expires_at: datetime | None = None) -> NewKey:
        """POST /api/keys; without `expires_at` (with a time zone) it works until it is revoked.

        Not repeated on failure: the secret of a repeated answer would be gone.
        """
        body: dict[str, Any] = {"name": name, "scopes": list(scopes)}
        body |= {"expires_at": expires_at} if expires_at is not None else {}
        return self._transport.post("/api/keys", NewKey, body)

    def revoke_key(self, key_id: str) -> None:
        """DELETE /api/keys/{id}: effective at once."""
        self._transport.request("DELETE", f"/api/keys/{segment(key_id)}")
