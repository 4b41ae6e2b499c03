"""Actions on a job. One that has ended is answered as it is: nothing changes it."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec
from fusion_core.db import admin
from fusion_core.db.admin import Done
from fusion_http.problem_details import FieldError, invalid
from litestar import post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from fusion_orchestrator.admin.actions import Why, perform
from fusion_orchestrator.admin.auth import Caller, operator
from fusion_orchestrator.service import Service


class Reclaim(Why, frozen=True, kw_only=True):
    """`force` takes the lease of a worker that still renews it."""

    force: bool = False


class Priority(Why, frozen=True, kw_only=True):
    """Higher goes first."""

    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)]


class Deadline(Why, frozen=True, kw_only=True):
    """When the job fails unless it has ended, with its offset from UTC; null: never."""

    deadline_at: Annotated[datetime, msgspec.Meta(tz=True)] | None


@post("/jobs/{job_id:uuid}/requeue", guards=[operator], status_code=200, summary="Give a job back to its queue")
async def requeue_job(
    job_id: FromPath[UUID], data: JSONBody[Why], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    """A running job goes on elsewhere from its last checkpoint; a quarantined or waiting one is claimable at once."""
    return await perform(service, caller, data, lambda conn, by: admin.requeue_job(conn, by, job_id))


@post("/jobs/{job_id:uuid}/reclaim", guards=[operator], status_code=200, summary="Take a job's lease back now")
async def reclaim_job(
    job_id: FromPath[UUID], data: JSONBody[Reclaim], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    """As the sweep does, without its wait: counts as a lost worker."""
    return await perform(service, caller, data, lambda conn, by: admin.reclaim_job(conn, by, job_id, force=data.force))


@post("/jobs/{job_id:uuid}/fail", guards=[operator], status_code=200, summary="End a job as failed")
async def fail_job(
    job_id: FromPath[UUID], data: JSONBody[Why], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    """The customer reads the reason under the code `failed_by_operator`, and pays nothing."""
    return await perform(service, caller, data, lambda conn, by: admin.fail_job(conn, by, job_id))


@post("/jobs/{job_id:uuid}/priority", guards=[operator], status_code=200, summary="Change a job's priority")
async def change_priority(
    job_id: FromPath[UUID], data: JSONBody[Priority], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    return await perform(service, caller, data, lambda conn, by: admin.change_priority(conn, by, job_id, data.priority))


@post("/jobs/{job_id:uuid}/deadline", guards=[operator], status_code=200, summary="Move or end a job's deadline")
async def change_deadline(
    job_id: FromPath[UUID], data: JSONBody[Deadline], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    if data.deadline_at is not None and data.deadline_at <= datetime.now(UTC):
        raise invalid([FieldError("/deadline_at", "is in the past; to end the job use fail")])
    return await perform(
        service, caller, data, lambda conn, by: admin.change_deadline(conn, by, job_id, data.deadline_at)
    )
