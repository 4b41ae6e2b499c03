"""POST /pricing/estimate: free, exact, creates nothing."""

from typing import Annotated, Any, Literal

import msgspec
from fusion_core.db.pool import queries
from fusion_core.job_spec import BatchSize, FinetuneHyperparams, SeqLen
from fusion_core.money import (
    MAX_PARAMS,
    MICRO,
    Estimate,
    LineItem,
    PriceTable,
    estimate_contract,
    estimate_finetune,
    estimate_train,
)
from litestar import post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from fusion_api.auth import needs
from fusion_api.idempotency import Once
from fusion_api.problem_details import FieldError, invalid
from fusion_api.services import Services

Params = Annotated[int, msgspec.Meta(ge=1, le=MAX_PARAMS)]


class EstimateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tokens` counts for itself; else steps times seq_len, batch_size and gradient_accumulation.

    The steps of a training are turns x (`train_steps`, or cycles x steps_per_cycle), those of a fine-tuning `steps`
    or `train_steps`.
    """

    type: Literal["train", "contract", "finetune"] = "train"
    params_before: Params
    params_after: Params | None = None
    tokens: Annotated[int, msgspec.Meta(ge=0, le=10**15)] | None = None
    train_steps: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    turns: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    cycles: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 6
    steps_per_cycle: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    steps: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = FinetuneHyperparams().steps
    seq_len: SeqLen = 256
    batch_size: BatchSize = 1
    gradient_accumulation: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1

    @property
    def training_tokens(self) -> int:
        if self.tokens is not None:
            return self.tokens
        if self.type == "finetune":
            steps = self.steps if self.train_steps is None else self.train_steps
        else:
            per_turn = self.cycles * self.steps_per_cycle if self.train_steps is None else self.train_steps
            steps = self.turns * per_turn
        return steps * self.seq_len * self.batch_size * self.gradient_accumulation


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


@post(
    "/pricing/estimate",
    guards=[needs("read", "train", "billing")],
    status_code=200,
    summary="Estimate what a job costs",
)
async def estimate_price(
    data: JSONBody[EstimateRequest], once: NamedDependency[Once], services: NamedDependency[Services]
) -> ShownEstimate:
    await once.allow()
    prices = await current_prices(services.pool)
    if data.type == "contract":
        return show_estimate(estimate_contract(prices, data.params_before))
    before, after = data.params_before, data.params_after
    if data.type == "finetune":
        if after not in (None, before):
            raise invalid([FieldError("/params_after", f"fine-tuning keeps the size, {before}")])
        return show_estimate(estimate_finetune(prices, before, data.training_tokens))
    if after is None:
        raise invalid([FieldError("/params_after", "is required for type train")])
    if after < before:
        raise invalid([FieldError("/params_after", f"is less than params_before, {before}")])
    return show_estimate(estimate_train(prices, before, after, data.training_tokens))
