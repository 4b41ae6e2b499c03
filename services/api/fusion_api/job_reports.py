"""What training reports: the curve while it runs, and the result when it has ended."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from fusion_core.db import jobs
from fusion_core.db.pool import queries
from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from fusion_api.auth import Caller, needs
from fusion_api.jobs import own_job
from fusion_api.problem_details import ProblemError
from fusion_api.services import Services

METRICS_PER_PAGE = 10_000
Points = Annotated[
    int | None,
    QueryParameter(ge=4, le=2000, description="at most so many, spread over all steps, with every extreme of the loss"),
]


class MetricsPage(msgspec.Struct, frozen=True):
    """`latest_step` is the newest of the job, whether or not it is among the points."""

    job_id: UUID
    count: int
    latest_step: int
    points: list[dict[str, Any]]


@get("/jobs/{job_id:uuid}/metrics", guards=[needs("read", "train")], summary="Metrics of a job")
async def get_metrics(
    job_id: FromPath[UUID],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    since_step: Annotated[int, QueryParameter(ge=0, le=2**31 - 1, description="only later steps")] = 0,
    points: Points = None,
) -> MetricsPage:
    """Without `points` every point as it was reported, the first 10,000 after `since_step`."""
    await own_job(services, caller, job_id)
    async with services.pool.acquire() as connection:
        if points is None:
            found = await jobs.list_metrics(connection, job_id, since_step=since_step, limit=METRICS_PER_PAGE)
        else:
            found = await jobs.sample_metrics(connection, job_id, since_step=since_step, points=points)
        latest = await queries.latest_metric_step(connection, job_id=job_id)
    return MetricsPage(job_id, len(found), latest, found)


@get(
    "/jobs/{job_id:uuid}/result",
    guards=[needs("read", "train")],
    summary="Result of a completed job",
    problems=("result_not_ready",),
)
async def get_result(
    job_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> dict[str, Any]:
    """What the trainer found, the cost, and the GPU minutes of all attempts together."""
    job = await own_job(services, caller, job_id)
    if job.result is None:
        raise ProblemError("result_not_ready", f"the job is {job.status}")
    return job.result | {"gpu_minutes": round(job.gpu_seconds / 60, 2)}
