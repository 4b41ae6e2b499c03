"""What the API answers about models and jobs, as typed values. Fields that a newer server adds are ignored."""

from datetime import datetime
from typing import Any

import msgspec

from fusion_client.account_models import Estimate

TERMINAL_STATUSES = frozenset({"completed", "failed", "cancelled"})


class BaseModel(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the shared catalog: a model that can be grown."""

    id: str
    family: str
    name: str
    version: str
    params: int
    precision: str


class BaseModelDetail(BaseModel, frozen=True, kw_only=True):
    """An entry looked at on its own. `max_seq_len` is the longest sequence that it takes; `rehearsal` says whether the
    catalog has text of its own."""

    layers: int
    hidden_size: int
    vocab_size: int
    max_seq_len: int | None
    bytes: int
    rehearsal: bool


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A trained model of the account. `lineage` names the job that made it."""

    id: str
    name: str
    version: str
    params: int
    base_model_id: str | None
    lineage: dict[str, Any]
    status: str
    created_at: datetime
    expires_at: datetime | None = None


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a line, and the job that made it from its parent, or from a base model, and a dataset."""

    model_id: str
    name: str
    version: str
    params: int
    status: str
    created_at: datetime
    job_id: str
    job_type: str
    dataset_id: str | None
    dataset: str | None
    parent_model_id: str | None
    base_model_id: str | None
    base_model: str | None


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model: relative path, size in bytes, SHA-256 in hex, short-lived URL."""

    rel: str
    size: int
    sha256: str
    url: str


class DownloadManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a model."""

    model_id: str
    name: str
    version: str
    files: tuple[ManifestFile, ...]
    expires_at: datetime | None = None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job or a dataset failed."""

    code: str
    message: str = ""
    errors: tuple[dict[str, Any], ...] = ()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job. `retries` counts interruptions, which cost nothing; `last_checkpoint_step` is the resume point."""

    id: str
    type: str
    status: str
    retries: int
    last_checkpoint_step: int
    output_model_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def is_over(self) -> bool:
        return self.status in TERMINAL_STATUSES


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is; `seconds_left` is None while nothing is trained."""

    step: int
    total_steps: int
    percent: float
    tokens: int
    seconds_left: float | None
    cost_so_far_usd: float = 0.0


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why a queued job has not started, in words too; `until` where it ends by itself."""

    reason: str
    message: str
    until: datetime | None


class QueuePlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a queued job stands; `expected_start_at` is None where nothing is known to serve it."""

    position: int
    expected_start_at: datetime | None
    waits_for: list[Waiting] = []


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A point from which a stopped job can go on; `status` is ok, lost or deleted."""

    id: str
    step: int
    turn_end: bool
    bytes: int
    status: str
    created_at: datetime


class Compute(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that a job asked for."""

    gpu_class: str
    gpu_count: int


class JobDetail(Job, frozen=True, kw_only=True):
    """A job looked at on its own. `phase` says what its worker is doing; `estimate` is its frozen price."""

    phase: str | None
    progress: JobProgress
    base_model_id: str | None
    dataset_id: str | None
    hyperparams: dict[str, Any]
    params_before: int
    params_after: int
    estimate: Estimate
    cancel_requested: bool
    error: Failure | None
    source_model_id: str | None = None
    labels: dict[str, str] = {}
    description: str | None = None
    stop_requested: bool = False
    priority: str = "normal"
    compute: Compute | None = None
    queue: QueuePlace | None = None
    resumed_from: str | None = None
    start_step: int = 0


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a job's log. `seq` counts from 1 without gaps."""

    seq: int
    type: str
    data: dict[str, Any]


class MetricsPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the training curve; `throughput` is steps per second."""

    ts: datetime
    step: int
    cycle: int
    phase: str
    loss: float
    lr: float
    throughput: float
    vram_gb: float
    grad_norm: float
    tokens_per_s: float | None = None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The training curve after `since_step`."""

    job_id: str
    count: int
    latest_step: int
    points: tuple[MetricsPoint, ...]


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of a completed job. `perplexity` has held-out values by `base`, `turn_1` and so on, of a contraction
    by `source`, `pruned` and `healed`; `retention_perplexity` has those of the base's own text. What a type of job does
    not have is None or empty."""

    cost_usd: float
    params_before: int | None = None
    params_after: int | None = None
    function_preservation: float | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    perplexity: dict[str, float | None] = {}
    retention_perplexity: dict[str, float | None] = {}
    requested_shrinkage: float | None = None
    achieved_shrinkage: float | None = None
    tokens: int | None = None
    gpu_minutes: float | None = None
    growth_plan: dict[str, Any] = {}
    contraction_plan: dict[str, Any] = {}
    reproducibility: dict[str, Any] = {}
