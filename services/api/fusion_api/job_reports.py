"""What training reports: the curve while it runs, and the result when it has ended."""

from typing import Annotated, Literal, NotRequired, TypedDict, cast
from uuid import UUID

import msgspec
from fusion_core.contraction_plan import ContractionPlan
from fusion_core.db import jobs
from fusion_core.db.pool import queries
from fusion_core.growth_plan import GrowthPlan
from fusion_http.problem_details import ProblemError
from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from fusion_api.auth import Caller, needs
from fusion_api.examples import METRICS, RESULT
from fusion_api.job_events import check_history
from fusion_api.jobs import own_job
from fusion_api.services import Services

METRICS_PER_PAGE = 10_000
Points = Annotated[
    int | None,
    QueryParameter(ge=4, le=2000, description="at most so many, spread over all steps, with every extreme of the loss"),
]


class MetricsPoint(TypedDict):
    """`loss` is that of the step's own tokens, `throughput` steps a second, `ts` when it was reported."""

    ts: Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
    step: int
    cycle: int
    phase: Literal["train"]
    loss: float
    lr: float
    throughput: float
    tokens_per_s: float
    grad_norm: float
    vram_gb: float


class MetricsPage(msgspec.Struct, frozen=True):
    """`latest_step` is the newest of the job, whether or not it is among the points."""

    job_id: UUID
    count: int
    latest_step: int
    points: list[MetricsPoint]


class TrainingCurve(TypedDict):
    """Files that lie beside the model's weights; `plot` is null where none could be drawn."""

    data: str
    plot: str | None


class RetainPoint(TypedDict):
    """Perplexities with the weights the share `retain` of the way back to the base."""

    retain: float
    perplexity: float
    retention_perplexity: float | None


class Reproducibility(TypedDict):
    """What it takes to train the same bytes again."""

    torch: str
    transformers: str
    accelerate: str
    numpy: str
    python: str
    device: str
    deterministic: bool
    threads: int
    seed: int
    world_size: int


class JobResult(TypedDict):
    """What the job cost and what came of it; which members there are besides depends on its type and its settings.

    `perplexity` and `retention_perplexity` have a value a stage: `base`, `turn_1` and so on, or of a contraction
    `source`, `pruned` and `healed`. `function_preservation` is by how much growing changed any logit: 0 is nothing.
    `layer_damage` has for each layer what its cut alone would cost, in nats.
    """

    cost_usd: float
    gpu_minutes: float
    tokens: NotRequired[int]
    params_before: NotRequired[int]
    params_after: NotRequired[int]
    perplexity_before: NotRequired[float]
    perplexity_after: NotRequired[float]
    perplexity: NotRequired[dict[str, float]]
    retention_perplexity_before: NotRequired[float | None]
    retention_perplexity_after: NotRequired[float | None]
    retention_perplexity: NotRequired[dict[str, float]]
    training_curve: NotRequired[TrainingCurve]
    reproducibility: NotRequired[Reproducibility]
    function_preservation: NotRequired[float]
    growth_plan: NotRequired[GrowthPlan]
    retain: NotRequired[float]
    retain_curve: NotRequired[list[RetainPoint]]
    requested_shrinkage: NotRequired[float]
    achieved_shrinkage: NotRequired[float]
    importance: NotRequired[str]
    layers: NotRequired[list[int]]
    layer_damage: NotRequired[list[float]]
    contraction_plan: NotRequired[ContractionPlan]


@get(
    "/jobs/{job_id:uuid}/metrics",
    guards=[needs("read", "train")],
    summary="Metrics of a job",
    answer=METRICS,
    problems=("history_gone",),
)
async def get_metrics(
    job_id: FromPath[UUID],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    since_step: Annotated[int, QueryParameter(ge=0, le=2**31 - 1, description="only later steps")] = 0,
    points: Points = None,
) -> MetricsPage:
    """Without `points` every point as it was reported, the first 10,000 after `since_step`."""
    check_history(await own_job(services, caller, job_id))
    async with services.pool.acquire() as connection:
        if points is None:
            found = await jobs.list_metrics(connection, job_id, since_step=since_step, limit=METRICS_PER_PAGE)
        else:
            found = await jobs.sample_metrics(connection, job_id, since_step=since_step, points=points)
        latest = await queries.latest_metric_step(connection, job_id=job_id)
    return MetricsPage(job_id, len(found), latest, cast(list[MetricsPoint], found))


@get(
    "/jobs/{job_id:uuid}/result",
    guards=[needs("read", "train")],
    summary="Result of a completed job",
    answer=RESULT,
    problems=("result_not_ready",),
)
async def get_result(
    job_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> JobResult:
    """What the trainer found, the cost, and the GPU minutes of all attempts together."""
    job = await own_job(services, caller, job_id)
    if job.result is None:
        raise ProblemError("result_not_ready", f"the job is {job.status}")
    return cast(JobResult, job.result | {"gpu_minutes": round(job.gpu_seconds / 60, 2)})
