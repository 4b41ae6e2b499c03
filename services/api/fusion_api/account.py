"""The account's view of itself: what runs, what was used, what it cost, and how much may be spent."""

from datetime import date
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_core.money import MICRO, LineItem
from fusion_http.paging import After, Limit, page
from litestar import Request, Response, get, patch
from litestar.di import NamedDependency
from litestar.params import JSONBody, QueryParameter

from fusion_api.auth import Caller, needs
from fusion_api.examples import OVERVIEW, USAGE
from fusion_api.pricing import ShownLine, dollars, show_line
from fusion_api.services import Services
from fusion_api.times import Time, shown

Days = Annotated[int, QueryParameter(ge=1, le=366, description="how many days back, today included")]
Usd = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Overview(msgspec.Struct, frozen=True):
    active_runs: int
    models: int
    datasets: int
    gpu_minutes_period: float
    tokens_period: int
    spend_usd_period: float
    period_days: int


class UsageBucket(msgspec.Struct, frozen=True):
    """One day in UTC."""

    date: date
    gpu_minutes: float
    tokens: int
    cost_usd: float
    jobs: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    period_days: int
    unit: str = "day"
    total_gpu_minutes: float
    total_tokens: int
    total_cost_usd: float
    total_jobs: int
    buckets: list[UsageBucket]


class LedgerLine(msgspec.Struct, frozen=True, kw_only=True):
    """What one job that has ended cost; `line_items` compare directly with its estimate's."""

    id: UUID
    job_id: UUID
    type: str
    status: str
    total_usd: float
    line_items: list[ShownLine]
    tokens: int
    gpu_minutes: float
    price_version: int
    created_at: Time


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """Of this calendar month in UTC. `reserved_usd` is what jobs that have not ended may still cost."""

    limit_usd: float | None
    warning_usd: float | None
    billed_usd: float
    reserved_usd: float
    warning: bool


class Account(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    name: str
    max_running_jobs: int
    spend: Spend


class ChangeAccount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Members left out stay as they are; null takes the limit or the warning away."""

    spend_limit_usd: Usd | msgspec.UnsetType | None = msgspec.UNSET
    spend_warning_usd: Usd | msgspec.UnsetType | None = msgspec.UNSET


def _minutes(seconds: float) -> float:
    return round(seconds / 60, 2)


def _micro(usd: float | None) -> int | None:
    return None if usd is None else round(usd * MICRO)


def _usd(microusd: int | None) -> float | None:
    return None if microusd is None else dollars(microusd)


@get("/overview", guards=[needs("read", "billing")], summary="Counts and spend at a glance", answer=OVERVIEW)
async def get_overview(
    services: NamedDependency[Services], caller: NamedDependency[Caller], days: Days = 30
) -> Overview:
    row = await queries.overview(services.pool, account_id=caller.account_id, days=days)
    return Overview(
        active_runs=row["active_runs"],
        models=row["models"],
        datasets=row["datasets"],
        gpu_minutes_period=_minutes(row["gpu_seconds"]),
        tokens_period=row["tokens"],
        spend_usd_period=dollars(row["amount_microusd"]),
        period_days=days,
    )


@get("/usage", guards=[needs("read", "billing")], summary="Use by day", answer=USAGE)
async def get_usage(services: NamedDependency[Services], caller: NamedDependency[Caller], days: Days = 14) -> Usage:
    rows = [row async for row in queries.usage_by_day(services.pool, account_id=caller.account_id, days=days)]
    return Usage(
        period_days=days,
        total_gpu_minutes=_minutes(sum(row["gpu_seconds"] for row in rows)),
        total_tokens=sum(row["tokens"] for row in rows),
        total_cost_usd=dollars(sum(row["amount_microusd"] for row in rows)),
        total_jobs=sum(row["jobs"] for row in rows),
        buckets=[
            UsageBucket(
                row["date"], _minutes(row["gpu_seconds"]), row["tokens"], dollars(row["amount_microusd"]), row["jobs"]
            )
            for row in rows
        ],
    )


@get("/ledger", guards=[needs("billing")], summary="What jobs cost, newest first")
async def list_ledger(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    limit: Limit = 50,
    after: After = None,
    job_id: Annotated[UUID | None, QueryParameter(description="only this job's line")] = None,
) -> Response[list[LedgerLine]]:
    rows = queries.list_ledger(services.pool, account_id=caller.account_id, job_id=job_id, after=after, limit=limit)
    return page(request, [_ledger_line(row) async for row in rows], limit)


def _ledger_line(row: Any) -> LedgerLine:
    return LedgerLine(
        id=row["id"],
        job_id=row["job_id"],
        type=row["type"],
        status=row["state"],
        total_usd=dollars(row["amount_microusd"]),
        line_items=[show_line(msgspec.convert(item, LineItem)) for item in row["line_items"]],
        tokens=row["tokens"],
        gpu_minutes=_minutes(row["gpu_seconds"]),
        price_version=row["price_version"],
        created_at=shown(row["created_at"]),
    )


@get("/account", guards=[needs("read", "billing")], summary="The account, its limits and this month's spend")
async def get_account(services: NamedDependency[Services], caller: NamedDependency[Caller]) -> Account:
    account = await queries.get_account(services.pool, account_id=caller.account_id)
    return await _shown(services, account)


@patch(
    "/account",
    guards=[needs("billing")],
    summary="Set the spend limit and its warning",
    example={"spend_limit_usd": 500, "spend_warning_usd": 400},
)
async def change_account(
    data: JSONBody[ChangeAccount], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> Account:
    """A job that would take the month past the limit is refused with 402; past the warning it is let through."""
    async with services.pool.acquire() as connection, connection.transaction():
        account = await queries.lock_account(connection, account_id=caller.account_id)
        limit, warning = account["spend_limit_microusd"], account["spend_warning_microusd"]
        if data.spend_limit_usd is not msgspec.UNSET:
            limit = _micro(data.spend_limit_usd)
        if data.spend_warning_usd is not msgspec.UNSET:
            warning = _micro(data.spend_warning_usd)
        account = await queries.set_spend(
            connection, account_id=caller.account_id, spend_limit_microusd=limit, spend_warning_microusd=warning
        )
    return await _shown(services, account)


async def _shown(services: Services, account: Any) -> Account:
    spend = await queries.spend_of_month(services.pool, account_id=account["id"])
    warning, spent = account["spend_warning_microusd"], spend["billed_microusd"] + spend["reserved_microusd"]
    return Account(
        id=account["id"],
        name=account["name"],
        max_running_jobs=account["max_running_jobs"],
        spend=Spend(
            limit_usd=_usd(account["spend_limit_microusd"]),
            warning_usd=_usd(warning),
            billed_usd=dollars(spend["billed_microusd"]),
            reserved_usd=dollars(spend["reserved_microusd"]),
            warning=warning is not None and spent >= warning,
        ),
    )
