"""What a customer does to a job: cancel, stop, resume; and the checkpoints it can go on from.

All three are legal in every state: where they can do nothing they answer the job as it is.
"""

import hashlib
from typing import Any, Literal
from uuid import UUID

import msgspec
from fusion_core.db import jobs
from fusion_core.db.job_resumption import CheckpointGoneError, NotStoppedError, resume_from_checkpoint
from fusion_core.db.jobs import IdempotencyConflictError, InputGoneError, SpendLimitError
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.money import PriceError
from fusion_http.paging import After, Limit, page
from fusion_http.problem_details import FieldError, ProblemError, invalid, not_found
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.idempotency import Once
from fusion_api.job_views import JobDetail
from fusion_api.jobs import own_job, read_detail, too_much
from fusion_api.pricing import current_prices
from fusion_api.services import Services
from fusion_api.times import Time, shown


class ResumeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`checkpoint_id` None: the newest one."""

    checkpoint_id: UUID | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`status` lost: its files cannot be read any more, and the job fell back to the one before it; deleted: newer ones
    have taken its place, or the job ended long ago."""

    id: UUID
    step: int
    turn_end: bool
    bytes: int
    status: Literal["ok", "lost", "deleted"]
    created_at: Time


@post("/jobs/{job_id:uuid}/cancel", guards=[needs("train")], status_code=200, summary="Cancel a job")
async def cancel_job(
    job_id: FromPath[UUID],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> JobDetail:
    """A job that has ended is answered as it is; a running one stops after its current step."""

    async def cancel(connection: Connection) -> UUID:
        return _own(await jobs.cancel_job(connection, caller.account_id, job_id)).id

    return await read_detail(services, caller, await once.make(cancel) or job_id)


@post("/jobs/{job_id:uuid}/stop", guards=[needs("train")], status_code=200, summary="Stop a job, keeping a checkpoint")
async def stop_job(
    job_id: FromPath[UUID],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> JobDetail:
    """A running job saves a checkpoint and lets its machine go; it waits 30 days to be resumed or cancelled."""

    async def stop(connection: Connection) -> UUID:
        return _own(await jobs.stop_job(connection, caller.account_id, job_id)).id

    return await read_detail(services, caller, await once.make(stop) or job_id)


@post(
    "/jobs/{job_id:uuid}/resume",
    guards=[needs("train")],
    status_code=200,
    summary="Resume a stopped job",
    problems=("not_stopped", "spend_limit_reached"),
    also=(201,),
    example={"checkpoint_id": "0198b3a2-6f00-7000-8000-000000000004"},
)
async def resume_job(
    request: Request[Any, Any, Any],
    job_id: FromPath[UUID],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    data: JSONBody[ResumeRequest | None] = None,
) -> Response[JobDetail]:
    """From the newest checkpoint the job itself goes on, with 200; from an older one a new job does, with 201."""
    checkpoint_id = data.checkpoint_id if data is not None else None

    async def resume(connection: Connection) -> UUID:
        if checkpoint_id is None:
            return _own(await jobs.resume_job(connection, caller.account_id, job_id)).id
        deadline_s = services.settings.job_deadline_h * 3600
        return await _resume_from(connection, caller, job_id, checkpoint_id, once.key, deadline_s)

    job = await read_detail(services, caller, await once.make(resume) or job_id)
    return Response(job, status_code=200 if job.id == job_id or once.replayed else 201)


async def _resume_from(
    connection: Connection, caller: Caller, job_id: UUID, checkpoint_id: UUID, key: str | None, deadline_s: float
) -> UUID:
    """Without an Idempotency-Key one checkpoint makes one job, however often the request is sent.

    The new job's own key tells checkpoints apart: the header's is any string, also one that was sent for another job.
    """
    own_key = f"resume-{checkpoint_id}"
    if key is not None:
        own_key += f"-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    prices = await current_prices(connection)
    try:
        resumed = await resume_from_checkpoint(
            connection, caller.account_id, job_id, checkpoint_id, prices, own_key, deadline_s
        )
    except NotStoppedError as error:
        raise ProblemError("not_stopped", f"the job is {error}") from error
    except CheckpointGoneError as error:
        what = "checkpoint of this job that can be read"
        raise ProblemError("not_found", f"no such {what}", [FieldError("/checkpoint_id", f"no such {what}")]) from error
    except PriceError as error:  # prices were narrowed since the first job was created
        detail = f"{error}; resumed without checkpoint_id, the job goes on at the price it has"
        raise invalid([FieldError("/checkpoint_id", detail)]) from error
    except InputGoneError as error:
        raise not_found(f"{error}: it was deleted meanwhile") from error
    except SpendLimitError as error:
        raise too_much(error) from error
    except IdempotencyConflictError as error:
        detail = f"a job was submitted with the idempotency_key {own_key}; send an Idempotency-Key of your own"
        raise ProblemError("idempotency_conflict", detail, [FieldError("Idempotency-Key", detail)]) from error
    return _own(resumed.job if resumed is not None else None).id


def _own(job: JobRow | None) -> JobRow:
    if job is None:
        raise not_found("job")
    return job


@get("/jobs/{job_id:uuid}/checkpoints", guards=[needs("read", "train")], summary="Checkpoints of a job, newest first")
async def list_checkpoints(
    request: Request[Any, Any, Any],
    job_id: FromPath[UUID],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    limit: Limit = 50,
    after: After = None,
) -> Response[list[Checkpoint]]:
    await own_job(services, caller, job_id)
    rows = queries.list_checkpoints(services.pool, job_id=job_id, after=after, limit=limit)
    found = [
        Checkpoint(
            id=row["id"],
            step=row["step"],
            turn_end=row["turn_end"],
            bytes=row["bytes"],
            status=row["state"],
            created_at=shown(row["created_at"]),
        )
        async for row in rows
    ]
    return page(request, found, limit)
