"""Jobs as the API shows them: POST exactly as the product's manual, GET with more."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from fusion_core.db.rows import JobRow
from fusion_core.job_spec import TrainSpec
from fusion_core.money import Estimate
from fusion_core.states import State

from fusion_api.pricing import ShownEstimate, show_estimate
from fusion_api.times import shown, shown_or_none


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The nine fields of the answer to POST /jobs."""

    id: UUID
    type: str
    status: str
    retries: int
    last_checkpoint_step: int
    output_model_id: UUID | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Progress(msgspec.Struct, frozen=True):
    """`step` is the last one reported; seconds_left is None until steps have been seen."""

    step: int
    total_steps: int
    percent: float
    tokens: int
    seconds_left: float | None


class JobError(msgspec.Struct, frozen=True):
    code: str
    message: str
    errors: list[Any]


class JobDetail(Job, frozen=True, kw_only=True):
    """A job as GET shows it."""

    phase: str | None
    progress: Progress
    base_model_id: UUID
    dataset_id: UUID
    hyperparams: dict[str, Any]
    params_before: int
    params_after: int
    estimate: ShownEstimate
    cancel_requested: bool
    error: JobError | None


def _nine(job: JobRow) -> dict[str, Any]:
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


def show_job(job: JobRow) -> Job:
    return Job(**_nine(job))


def show_detail(job: JobRow, point: dict[str, Any] | None) -> JobDetail:
    """`point` is the job's newest metrics point."""
    spec = msgspec.convert(job.spec, TrainSpec)
    base_model_id = job.base_model_id or job.source_model_id
    if base_model_id is None or job.dataset_id is None:
        raise ValueError(f"job {job.id} has no base model or no dataset")
    return JobDetail(
        **_nine(job),
        phase=job.phase,
        progress=_progress(job, spec, point),
        base_model_id=base_model_id,
        dataset_id=job.dataset_id,
        hyperparams=msgspec.to_builtins(spec.hyperparams),
        params_before=spec.growth_plan.params_before,
        params_after=spec.growth_plan.params_after,
        estimate=show_estimate(msgspec.convert(job.estimate, Estimate)),
        cancel_requested=job.cancel_requested_at is not None,
        error=msgspec.convert(job.error, JobError) if job.error is not None else None,
    )


def _progress(job: JobRow, spec: TrainSpec, point: dict[str, Any] | None) -> Progress:
    total = spec.hyperparams.total_steps
    step = total if job.state == State.COMPLETED else int(point["step"]) if point else job.last_checkpoint_step
    rate = float(point["throughput"]) if point else 0.0
    left = (total - step) / rate if rate > 0 and job.state == State.RUNNING else None
    return Progress(step, total, round(100 * step / total, 2), step * spec.hyperparams.tokens_per_step, left)


class MetricsPage(msgspec.Struct, frozen=True):
    job_id: UUID
    count: int
    latest_step: int
    points: list[dict[str, Any]]


class Event(msgspec.Struct, frozen=True):
    seq: int
    type: str
    created_at: datetime
    data: dict[str, Any]


def show_event(row: Any) -> Event:
    return Event(row["seq"], row["type"], row["created_at"].astimezone(UTC), row["data"])
