"""Workers, the leases they hold, and the queues they serve."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_core.db.waiting import RECENT_JOBS, expected_wait_s
from fusion_http.paging import After, Limit, page
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from fusion_orchestrator.admin.auth import viewer
from fusion_orchestrator.admin.rows import of_row
from fusion_orchestrator.service import Service

MAX_POOLS = 500
PoolName = Annotated[str | None, QueryParameter(name="pool", max_length=64)]


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """`id` is the job's. `age_s` counts from the claim; an expired lease is reclaimed unless its worker renews."""

    id: UUID
    account_id: UUID
    type: str
    pool: str
    phase: str | None
    worker_id: UUID
    worker_name: str | None
    worker_seen_at: datetime | None
    lease_epoch: int
    attempt_id: UUID
    claimed_at: datetime | None
    lease_expires_at: datetime
    age_s: float | None
    expired: bool


class AdminWorker(msgspec.Struct, frozen=True, kw_only=True):
    """`failures` are attempts in a row that crashed on it. A drained worker claims nothing until undrained."""

    id: UUID
    name: str
    pool: str
    state: str
    gpu_class: str | None
    gpus: int
    version: str
    spec_version: int
    capabilities: list[str]
    job_id: UUID | None
    started_at: datetime
    seen_at: datetime
    drain_requested_at: datetime | None
    drain_reason: str | None
    failures: int


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """A pool. `claimable` of the `queued` could start now; `demand` is the slots that would all be busy, as in metrics.

    `idle` and `busy` workers serve it, `draining` ones no longer do. `expected_wait_s` is that of a job submitted now:
    null where nothing is known to serve it.
    """

    name: str
    gpu_class: str | None
    gpu_count: int
    cordoned_at: datetime | None
    cordon_reason: str | None
    queued: int
    claimable: int
    held: int
    running: int
    oldest_age_s: float
    idle: int
    busy: int
    draining: int
    demand: int
    expected_wait_s: float | None


@get("/leases", guards=[viewer], summary="Leases of running jobs, with owner and age")
async def list_leases(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    limit: Limit = 50,
    after: After = None,
    pool_name: PoolName = None,
) -> Response[list[Lease]]:
    rows = queries.admin_leases(service.pool, pool=pool_name, after=after, limit=limit)
    return page(request, [of_row(Lease, row) async for row in rows], limit)


@get("/workers", guards=[viewer], summary="Workers with pool, GPUs, version, state and job")
async def list_workers(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    limit: Limit = 50,
    after: After = None,
    pool_name: PoolName = None,
    worker_state: Annotated[Literal["idle", "busy", "draining", "gone"] | None, QueryParameter(name="state")] = None,
) -> Response[list[AdminWorker]]:
    rows = queries.admin_workers(
        service.pool, worker_id=None, pool=pool_name, state=worker_state, after=after, limit=limit
    )
    return page(request, [of_row(AdminWorker, row) async for row in rows], limit)


@get("/queues", guards=[viewer], summary="Queues by pool: depth, oldest age, expected wait, demand")
async def list_queues(service: NamedDependency[Service]) -> list[Queue]:
    rows = queries.admin_queues(service.pool, recent=RECENT_JOBS, limit=MAX_POOLS)
    demand = {row["pool"]: row["slots"] async for row in queries.pool_demand(service.pool)}
    return [
        of_row(Queue, row, demand=demand.get(row["name"], 0), expected_wait_s=_wait_of_next_s(row))
        async for row in rows
    ]


def _wait_of_next_s(row: Mapping[str, Any]) -> float | None:
    if row["cordoned_at"] is not None:
        return None
    return expected_wait_s(row["claimable"] + 1, row["idle"], row["idle"] + row["busy"], row["mean_s"])
