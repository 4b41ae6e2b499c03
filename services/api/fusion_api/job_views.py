"""Jobs as the API shows them: POST exactly as the product's manual, GET with more."""

from datetime import UTC
from typing import Any, Literal, cast
from uuid import UUID

import msgspec
from fusion_core.db.endings import frozen_estimate, owed_if_cancelled
from fusion_core.db.rows import JobHead, JobRow
from fusion_core.job_spec import CustomerSpec, read_customer_spec
from fusion_core.priority import Priority, priority_word
from fusion_core.states import State, Status

from fusion_api.job_queue import QueuePlace
from fusion_api.placement import Compute
from fusion_api.pricing import ShownEstimate, dollars, show_estimate
from fusion_api.times import Time, shown, shown_or_none

JobType = Literal["train", "finetune", "contract"]
Phase = Literal["preparing", "diagnosing", "growing", "training", "checkpointing", "exporting"]
# docs/api.md says what the data of each holds.
EventType = Literal[
    "queued", "claimed", "phase", "metrics", "diagnosed", "grown", "evaluation", "notice", "checkpoint",
    "checkpoint_lost", "interrupted", "quarantined", "completed", "failed", "cancelled", "stopped", "resumed",
]  # fmt: skip


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The nine fields of the answer to POST /jobs."""

    id: UUID
    type: JobType
    status: Status
    retries: int
    last_checkpoint_step: int
    output_model_id: UUID | None
    created_at: Time
    started_at: Time | None
    finished_at: Time | None


class ListedJob(Job, frozen=True, kw_only=True):
    """A job of a list: the nine fields, and what lists are filtered by."""

    base_model_id: UUID | None
    source_model_id: UUID | None
    dataset_id: UUID | None
    labels: dict[str, str]
    description: str | None


class Progress(msgspec.Struct, frozen=True):
    """`step` is the last one that stands, `seconds_left` at the present speed, None until steps have been seen.

    `cost_so_far_usd` is what the job owes if it ends now: growth if it was done, tokens up to the last checkpoint.
    """

    step: int
    total_steps: int
    percent: float
    tokens: int
    seconds_left: float | None
    cost_so_far_usd: float


class Failure(msgspec.Struct, frozen=True):
    """Why a job or a dataset failed."""

    code: str
    message: str
    errors: list[dict[str, Any]]


class JobDetail(ListedJob, frozen=True, kw_only=True):
    """A job as GET shows it. A train job shows its base, whichever list it is from, as `base_model_id`.

    `resumed_from` is the stopped job from whose checkpoint, at `start_step`, this one went on.
    """

    phase: Phase | None
    priority: Priority
    compute: Compute | None
    queue: QueuePlace | None
    progress: Progress
    hyperparams: dict[str, Any]
    params_before: int
    params_after: int
    estimate: ShownEstimate
    cancel_requested: bool
    stop_requested: bool
    resumed_from: UUID | None
    start_step: int
    error: Failure | None


def _nine(job: JobHead) -> dict[str, Any]:
    return {
        "id": job.id,
        "type": job.type,
        "status": job.status,
        "retries": job.retries,
        "last_checkpoint_step": job.last_checkpoint_step,
        "output_model_id": job.output_model_id,
        "created_at": shown(job.created_at),
        "started_at": shown_or_none(job.started_at),
        "finished_at": shown_or_none(job.finished_at),
    }


def _listed(job: JobHead) -> dict[str, Any]:
    return _nine(job) | {
        "base_model_id": job.base_model_id or (job.source_model_id if job.type == "train" else None),
        "source_model_id": job.source_model_id,
        "dataset_id": job.dataset_id,
        "labels": job.labels,
        "description": job.description,
    }


def show_job(job: JobHead) -> Job:
    return Job(**_nine(job))


def show_listed(job: JobHead) -> ListedJob:
    return ListedJob(**_listed(job))


def show_detail(job: JobRow, point: dict[str, Any] | None, place: QueuePlace | None) -> JobDetail:
    """`point` is the newest metrics point of the job's current attempt, `place` that of a queued job."""
    spec = read_customer_spec(job.type, job.spec)
    return JobDetail(
        **_listed(job),
        phase=cast(Phase | None, job.phase),
        priority=priority_word(job.priority),
        compute=_compute(job),
        queue=place,
        progress=_progress(job, spec, point),
        hyperparams=msgspec.to_builtins(spec.hyperparams),
        params_before=spec.params_before,
        params_after=spec.params_after,
        estimate=show_estimate(frozen_estimate(job)),
        cancel_requested=job.cancel_requested_at is not None,
        stop_requested=job.stop_requested_at is not None,
        resumed_from=job.resumed_from,
        start_step=job.start_step,
        error=msgspec.convert(job.error, Failure) if job.error is not None else None,
    )


def _compute(job: JobRow) -> Compute | None:
    if job.gpu_class is None or job.gpu_count is None:
        return None
    return Compute(gpu_class=job.gpu_class, gpu_count=job.gpu_count)


def _progress(job: JobRow, spec: CustomerSpec, point: dict[str, Any] | None) -> Progress:
    """A contraction that does not heal has no steps: it is done when it is completed."""
    total = spec.total_steps
    if job.state == State.COMPLETED:
        return Progress(total, total, 100.0, total * spec.tokens_per_step, None, _cost_so_far(job))
    waits = job.state in (State.QUEUED, State.STOPPED)  # and goes on from its checkpoint
    step = int(point["step"]) if point and not waits else job.last_checkpoint_step
    rate = float(point["throughput"]) if point and job.state == State.RUNNING else 0.0
    left = round((total - step) / rate, 1) if rate > 0 else None
    percent = round(100 * step / total, 2) if total else 0.0
    return Progress(step, total, percent, step * spec.tokens_per_step, left, _cost_so_far(job))


def _cost_so_far(job: JobRow) -> float:
    match job.state:
        case State.COMPLETED:
            return dollars(frozen_estimate(job).total_microusd)
        case State.FAILED:
            return 0.0
    return dollars(owed_if_cancelled(job).total_microusd)


class Event(msgspec.Struct, frozen=True):
    seq: int
    type: EventType
    created_at: Time
    data: dict[str, Any]


def show_event(row: Any) -> Event:
    return Event(row["seq"], row["type"], row["created_at"].astimezone(UTC), row["data"])
