"""Prices, estimates and bills: pure arithmetic on integer micro-dollars. Each line is rounded up once.

The table, its tiers and the shape of an estimate are the product's contract (docs/api.md).
"""

import msgspec

MICRO = 1_000_000
MAX_PARAMS = 1_000_000_000_000
MAX_TOKENS = 10**15  # of one job: its price in micro-dollars fits into 64 bits at any rate


class PriceError(ValueError):
    """The model is larger than the price table reaches."""


class TooManyTokensError(ValueError):
    """The job would train on more tokens than one job may."""


class Tier(msgspec.Struct, frozen=True):
    """Prices for models of up to `max_params` parameters, in micro-dollars."""

    max_params: int
    per_million_tokens: int
    contraction: int


class PriceTable(msgspec.Struct, frozen=True):
    """One version of the prices. A job freezes its own when it is created."""

    version: int
    growth_per_billion: int
    minimum: int
    tiers: tuple[Tier, ...]

    def tier_of(self, params: int) -> Tier:
        """The cheapest tier that holds a model of `params` parameters. Raises PriceError."""
        for tier in self.tiers:
            if params <= tier.max_params:
                return tier
        raise PriceError(f"{params} parameters are beyond the largest priced model, {self.tiers[-1].max_params}")


def _tier(billions: int, tokens_usd: int, contraction_usd: int) -> Tier:
    return Tier(billions * 1_000_000_000, tokens_usd * MICRO, contraction_usd * MICRO)


DEFAULT_PRICES = PriceTable(
    version=1,
    growth_per_billion=25 * MICRO,
    minimum=2 * MICRO,
    tiers=(
        _tier(3, 3, 9),
        _tier(8, 6, 20),
        _tier(34, 12, 50),
        _tier(80, 25, 150),
        _tier(200, 45, 350),
        _tier(1000, 100, 800),
    ),
)


class LineItem(msgspec.Struct, frozen=True):
    """`qty` counts single tokens or parameters; `rate_microusd` is the price of a `unit`, of `params` of a billion."""

    label: str
    qty: int
    unit: str
    rate_microusd: int
    amount_microusd: int


class Estimate(msgspec.Struct, frozen=True):
    """What a job costs: exact, and equal to the ledger's entry once the job has completed."""

    line_items: tuple[LineItem, ...]
    unit: str
    qty: float

    @property
    def total_microusd(self) -> int:
        return sum(item.amount_microusd for item in self.line_items)


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _training_line(tokens: int, per_million: int) -> LineItem:
    return LineItem("training", tokens, "1M-tokens", per_million, _ceil_div(tokens * per_million, 1_000_000))


def _growth_line(params_added: int, per_billion: int) -> LineItem:
    return LineItem("growth", params_added, "params", per_billion, _ceil_div(params_added * per_billion, 1_000_000_000))


def estimate_train(prices: PriceTable, params_before: int, params_after: int, tokens: int) -> Estimate:
    """The price of growing a model and training it on `tokens` tokens.

    Raises PriceError, TooManyTokensError or ValueError.
    """
    if not 0 < params_before <= params_after or tokens < 0:
        raise ValueError("params_before must be positive and at most params_after, and tokens must not be negative")
    if tokens > MAX_TOKENS:
        raise TooManyTokensError(f"it comes to {tokens:,} tokens, and one job trains on {MAX_TOKENS:,} at the most")
    lines = [_training_line(tokens, prices.tier_of(params_after).per_million_tokens)]
    if params_after > params_before:
        lines.append(_growth_line(params_after - params_before, prices.growth_per_billion))
    short = prices.minimum - sum(line.amount_microusd for line in lines)
    if short > 0:
        lines.append(LineItem("minimum", 1, "job", short, short))
    return Estimate(tuple(lines), "1M-tokens", tokens / 1_000_000)


def estimate_contract(prices: PriceTable, params_before: int) -> Estimate:
    """The flat price of a contraction, by the size of the model contracted. Raises PriceError."""
    fee = prices.tier_of(params_before).contraction
    return Estimate((LineItem("contraction", 1, "job", fee, fee),), "job", 1)


def estimate_finetune(prices: PriceTable, params: int, tokens: int) -> Estimate:
    """The price of fine-tuning a model that keeps its size: tokens alone. Raises as `estimate_train`."""
    return estimate_train(prices, params, params, tokens)


def bill_cancelled(estimate: Estimate, *, growth_done: bool, tokens_committed: int) -> Estimate:
    """What a cancelled job owes at its frozen rates: growth if it was done, tokens up to the last checkpoint.

    The flat fee of a contraction buys a contracted model, so a contraction that was cancelled owes nothing.
    """
    lines = []
    for item in estimate.line_items:
        if item.label == "training" and tokens_committed > 0:
            lines.append(_training_line(tokens_committed, item.rate_microusd))
        if item.label == "growth" and growth_done:
            lines.append(item)
    return Estimate(tuple(lines), estimate.unit, tokens_committed / 1_000_000)
