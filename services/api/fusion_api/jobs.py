"""Jobs: create, list and look."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import msgspec
import structlog
from fusion_core.db import jobs
from fusion_core.db.jobs import IdempotencyConflictError, InputGoneError, JobFilter, SpendLimitError
from fusion_core.db.pool import Connection
from fusion_core.db.rehearsal_pools import ensure_sampled
from fusion_core.db.rows import JobRow
from fusion_core.states import State, Status
from fusion_http.paging import After, Limit, page
from fusion_http.problem_details import FieldError, ProblemError, invalid, not_found
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from fusion_api.auth import Caller, needs
from fusion_api.base_models import FoundModel
from fusion_api.examples import JOB, JOBS
from fusion_api.idempotency import IdempotencyKey
from fusion_api.job_bodies import MAX_LABELS, CreateJob
from fusion_api.job_creation import canonical_sha256, resolve
from fusion_api.job_queue import read_place
from fusion_api.job_views import Job, JobDetail, JobType, ListedJob, show_detail, show_job, show_listed
from fusion_api.pricing import dollars
from fusion_api.services import Services

log = structlog.get_logger()
Label = Annotated[str, msgspec.Meta(max_length=320, pattern="^[^=]{1,63}=")]
EXAMPLE = {
    "type": "train",
    "idempotency_key": "run-2026-06-04-a",
    "base_model_id": "0198b3a2-6f00-7000-8000-000000000001",
    "dataset_id": "0198b3a2-6f00-7000-8000-000000000002",
    "hyperparams": {"turns": 2, "output_name": "my-grown-model"},
}


@post(
    "/jobs",
    guards=[needs("train")],
    status_code=201,
    summary="Create a job",
    answer=JOB,
    problems=(
        "not_found",
        "dataset_not_ready",
        "unsupported_architecture",
        "no_fitting_pool",
        "spend_limit_reached",
    ),
    also=(200,),
    example=EXAMPLE,
)
async def create_job(
    request: Request[Any, Any, Any],
    data: JSONBody[CreateJob],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    header_key: IdempotencyKey = None,
) -> Response[Job]:
    """Submitting an idempotency key again answers the same job; with another body it is a conflict."""
    if header_key is not None and header_key != data.idempotency_key:
        raise _conflict("the header Idempotency-Key differs from idempotency_key")
    body = await request.body()
    try:
        async with services.pool.acquire() as connection:
            job = await jobs.find_by_key(connection, caller.account_id, data.idempotency_key, canonical_sha256(body))
        created = False
        if job is None:
            new, found = await resolve(services, caller, data, body)
            async with services.pool.acquire() as connection:
                await _ensure_sampled(connection, services, found, new.pool)
                job, created = await jobs.submit_job(connection, new)
    except InputGoneError as error:
        raise not_found(f"{error}: it was deleted meanwhile") from error
    except SpendLimitError as error:
        raise too_much(error) from error
    except IdempotencyConflictError as error:
        raise _conflict("this idempotency_key was used with another body") from error
    if created:
        log.info("job_created", job_id=str(job.id), type=job.type)
        return Response(show_job(job), status_code=201)
    return Response(show_job(job), status_code=200, headers={"Idempotent-Replayed": "true"})


async def _ensure_sampled(connection: Connection, services: Services, found: FoundModel, pool: str) -> None:
    """The job waits for text sampled from what it starts from; once there is some, it serves every later job."""
    settings = services.settings
    if settings.sample_rows > 0:
        await ensure_sampled(connection, found.base, config=found.config, rows=settings.sample_rows, pool=pool)


def too_much(error: SpendLimitError) -> ProblemError:
    cost, left = dollars(error.cost_microusd), dollars(error.left_microusd)
    return ProblemError(
        "spend_limit_reached", f"the job costs ${cost:.2f} and ${left:.2f} of this month's limit is left"
    )


def _conflict(detail: str) -> ProblemError:
    return ProblemError("idempotency_conflict", detail, [FieldError("/idempotency_key", detail)])


@get("/jobs", guards=[needs("read", "train")], summary="List your jobs", answer=JOBS)
async def list_jobs(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    limit: Limit = 50,
    after: After = None,
    job_type: Annotated[JobType | None, QueryParameter(name="type")] = None,
    status: Annotated[Status | None, QueryParameter()] = None,
    base_model: Annotated[UUID | None, QueryParameter(description="what the job starts from, also your own")] = None,
    dataset: Annotated[UUID | None, QueryParameter()] = None,
    label: Annotated[
        list[Label] | None, QueryParameter(max_items=MAX_LABELS, description="key=value; repeat it for jobs with all")
    ] = None,
) -> Response[list[ListedJob]]:
    wanted = JobFilter(
        type=job_type,
        status=status,
        start_model_id=base_model,
        dataset_id=dataset,
        labels=_labels(label or ()),
    )
    async with services.pool.acquire() as connection:
        if wanted == JobFilter():
            found = await jobs.list_jobs(connection, caller.account_id, limit=limit, after=after)
        else:
            found = await jobs.find_jobs(connection, caller.account_id, wanted, limit=limit, after=after)
    return page(request, [show_listed(job) for job in found], limit)


def _labels(given: Sequence[str]) -> dict[str, str]:
    """Raises ProblemError where one name is asked for twice: a job has one value of it."""
    pairs = [one.split("=", 1) for one in given]
    names = Counter(name for name, _ in pairs)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise invalid([FieldError("label", f"{name} is given more than once, and a job has one") for name in twice])
    return dict(pairs)


async def own_job(services: Services, caller: Caller, job_id: UUID) -> JobRow:
    """Raises ProblemError not_found: absent and another account's look the same."""
    async with services.pool.acquire() as connection:
        job = await jobs.get_job(connection, caller.account_id, job_id)
    if job is None:
        raise not_found("job")
    return job


async def read_detail(services: Services, caller: Caller, job_id: UUID) -> JobDetail:
    """Raises ProblemError not_found."""
    async with services.pool.acquire() as connection:
        found = await jobs.job_with_progress(connection, caller.account_id, job_id)
        if found is None:
            raise not_found("job")
        job, point = found
        place = await read_place(connection, job) if job.state == State.QUEUED else None
    return show_detail(job, point, place)


@get("/jobs/{job_id:uuid}", guards=[needs("read", "train")], summary="Get a job")
async def get_job(
    job_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> JobDetail:
    return await read_detail(services, caller, job_id)
