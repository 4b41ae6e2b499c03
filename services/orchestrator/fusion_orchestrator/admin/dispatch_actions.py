"""Actions on what takes jobs: a worker, a pool, dispatch for a pool or an account."""

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


class Dispatch(Why, frozen=True, kw_only=True):
    """A pool, an account, or both: then the account in that pool alone."""

    pool: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    account_id: UUID | None = None


@post("/workers/{worker_id:uuid}/drain", guards=[operator], status_code=200, summary="Drain a worker")
async def drain_worker(
    worker_id: FromPath[UUID], data: JSONBody[Why], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    """It gives its job back at a checkpoint, which costs no retry, and claims nothing until it is undrained."""
    return await perform(service, caller, data, lambda conn, by: admin.drain_worker(conn, by, worker_id, drain=True))


@post("/workers/{worker_id:uuid}/undrain", guards=[operator], status_code=200, summary="Let a worker claim again")
async def undrain_worker(
    worker_id: FromPath[UUID], data: JSONBody[Why], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    return await perform(service, caller, data, lambda conn, by: admin.drain_worker(conn, by, worker_id, drain=False))


@post("/pools/{name:str}/cordon", guards=[operator], status_code=200, summary="Claim nothing more in a pool")
async def cordon_pool(
    name: FromPath[str], data: JSONBody[Why], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    """What runs there goes on."""
    return await perform(service, caller, data, lambda conn, by: admin.cordon_pool(conn, by, name, cordon=True))


@post("/pools/{name:str}/uncordon", guards=[operator], status_code=200, summary="Claim in a pool again")
async def uncordon_pool(
    name: FromPath[str], data: JSONBody[Why], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    return await perform(service, caller, data, lambda conn, by: admin.cordon_pool(conn, by, name, cordon=False))


@post("/dispatch/pause", guards=[operator], status_code=200, summary="Start no more jobs of a pool or an account")
async def pause_dispatch(
    data: JSONBody[Dispatch], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    """What runs goes on; customers may submit and their jobs wait."""
    return await _pause(service, caller, data, pause=True)


@post("/dispatch/resume", guards=[operator], status_code=200, summary="Start jobs of a pool or an account again")
async def resume_dispatch(
    data: JSONBody[Dispatch], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Done:
    """Ends the pause of just this pool and account; the overview lists all of them."""
    return await _pause(service, caller, data, pause=False)


async def _pause(service: Service, caller: Caller, data: Dispatch, *, pause: bool) -> Done:
    if data.pool is None and data.account_id is None:
        raise invalid([FieldError("", "name a pool, an account_id, or both")])
    return await perform(
        service,
        caller,
        data,
        lambda conn, by: admin.pause_dispatch(conn, by, pool=data.pool, account_id=data.account_id, pause=pause),
    )
