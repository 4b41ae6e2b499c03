"""What the API answers about prices, the account and its keys, as typed values."""

from datetime import date, datetime
from typing import Any

import msgspec


class LineItem(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an estimate, in dollars."""

    label: str
    qty: float
    unit: str
    rate: float
    amount: float


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a job will cost, exactly, in dollars; of a whole job also the sizes that its plan comes to."""

    total_usd: float
    unit: str
    qty: float
    line_items: tuple[LineItem, ...]
    params_before: int | None = None
    params_after: int | None = None
    tokens: int | None = None


class PriceTier(msgspec.Struct, frozen=True, kw_only=True):
    """Prices for models of up to `max_params` parameters, in dollars."""

    max_params: int
    usd_per_million_tokens: float
    contraction_usd: float


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What new jobs are created at. A job keeps the prices of its `version`."""

    version: int
    growth_usd_per_billion_params: float
    minimum_usd: float
    tiers: tuple[PriceTier, ...]


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a setting was recommended."""

    setting: str
    value: int | float
    reason: str


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """A starting point for a base model and a dataset; `hyperparams` go into a job as they are."""

    hyperparams: dict[str, Any]
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]
    dataset_tokens: int
    params_before: int
    params_after: int
    estimate: Estimate


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars of this calendar month in UTC. `reserved_usd` is what jobs that have not ended may still cost."""

    limit_usd: float | None
    warning_usd: float | None
    billed_usd: float
    reserved_usd: float
    warning: bool


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The account that the API key belongs to."""

    id: str
    name: str
    max_running_jobs: int
    spend: Spend


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of what there is, and what the last `period_days` used."""

    active_runs: int
    models: int
    datasets: int
    gpu_minutes_period: float
    tokens_period: int
    spend_usd_period: float
    period_days: int


class UsageBucket(msgspec.Struct, frozen=True, kw_only=True):
    """One day in UTC."""

    date: date
    gpu_minutes: float
    tokens: int
    cost_usd: float
    jobs: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the jobs that ended in the period used, by day."""

    period_days: int
    unit: str = "day"
    total_gpu_minutes: float
    total_tokens: int
    total_cost_usd: float
    total_jobs: int
    buckets: tuple[UsageBucket, ...]


class LedgerLine(msgspec.Struct, frozen=True, kw_only=True):
    """What one job that has ended cost; its lines compare directly with those of its estimate."""

    id: str
    job_id: str
    type: str
    status: str
    total_usd: float
    line_items: tuple[LineItem, ...]
    tokens: int
    gpu_minutes: float
    price_version: int
    created_at: datetime


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key, without its secret."""

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    last_used_at: datetime | None
    revoked: bool
    created_at: datetime
    expires_at: datetime | None = None


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key just created; the secret is shown this once."""

    id: str
    prefix: str
    scopes: tuple[str, ...]
    secret: str
    expires_at: datetime | None = None

    def __repr__(self) -> str:
        return f"NewKey(id={self.id!r}, prefix={self.prefix!r}, scopes={self.scopes!r})"
