"""GET /pricing: the table; and how amounts are shown."""

from typing import Any

import msgspec
from fusion_core.db.pool import queries
from fusion_core.money import MICRO, Estimate, LineItem, PriceTable
from litestar import get
from litestar.di import NamedDependency

from fusion_api.auth import needs
from fusion_api.services import Services


class ShownLine(msgspec.Struct, frozen=True):
    label: str
    qty: int
    unit: str
    rate: float
    amount: float


class ShownEstimate(msgspec.Struct, frozen=True):
    total_usd: float
    unit: str
    qty: float
    line_items: list[ShownLine]


def dollars(microusd: int) -> float:
    return microusd / MICRO


def show_line(line: LineItem) -> ShownLine:
    return ShownLine(line.label, line.qty, line.unit, dollars(line.rate_microusd), dollars(line.amount_microusd))


def show_estimate(estimate: Estimate) -> ShownEstimate:
    lines = [show_line(line) for line in estimate.line_items]
    return ShownEstimate(dollars(estimate.total_microusd), estimate.unit, estimate.qty, lines)


async def current_prices(connection: Any) -> PriceTable:
    row = await queries.current_prices(connection)
    return msgspec.convert(row["price_table"], PriceTable)


class ShownTier(msgspec.Struct, frozen=True):
    """Prices for models of up to `max_params` parameters: of training tokens by the model made, of a contraction by
    the model contracted."""

    max_params: int
    usd_per_million_tokens: float
    contraction_usd: float


class ShownPrices(msgspec.Struct, frozen=True):
    """A job keeps the prices of the `version` at which it was created."""

    version: int
    growth_usd_per_billion_params: float
    minimum_usd: float
    tiers: list[ShownTier]


@get("/pricing", guards=[needs("read", "train", "billing")], summary="The prices that new jobs are created at")
async def get_prices(services: NamedDependency[Services]) -> ShownPrices:
    prices = await current_prices(services.pool)
    return ShownPrices(
        version=prices.version,
        growth_usd_per_billion_params=dollars(prices.growth_per_billion),
        minimum_usd=dollars(prices.minimum),
        tiers=[
            ShownTier(tier.max_params, dollars(tier.per_million_tokens), dollars(tier.contraction))
            for tier in prices.tiers
        ],
    )
