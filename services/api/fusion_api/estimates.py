"""POST /pricing/estimate: free, exact, creates nothing."""

from typing import Annotated, Any, Literal

import msgspec
from fusion_core.job_spec import BatchSize, FinetuneHyperparams, SeqLen
from fusion_core.money import (
    MAX_PARAMS,
    MAX_TOKENS,
    Estimate,
    PriceTable,
    TooManyTokensError,
    estimate_contract,
    estimate_finetune,
    estimate_train,
)
from fusion_http.problem_details import FieldError, ProblemError, invalid
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.examples import ESTIMATE
from fusion_api.idempotency import Once
from fusion_api.job_bodies import CreateJob
from fusion_api.job_creation import plan_job
from fusion_api.pricing import ShownEstimate, current_prices, show_estimate
from fusion_api.services import Services

Params = Annotated[int, msgspec.Meta(ge=1, le=MAX_PARAMS)]

EXAMPLE = {"type": "train", "params_before": 1_500_000_000, "params_after": 2_360_000_000, "turns": 2}


class EstimateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers, or a whole `job` as POST /jobs takes it, in which case nothing else is said.

    `tokens` counts for itself; else steps times seq_len, batch_size and gradient_accumulation. The steps of a training
    are turns x (`train_steps`, or cycles x steps_per_cycle), those of a fine-tuning `steps` or `train_steps`.
    """

    type: Literal["train", "contract", "finetune"] = "train"
    params_before: Params | None = None
    params_after: Params | None = None
    tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] | None = None
    train_steps: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    turns: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    cycles: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 6
    steps_per_cycle: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    steps: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = FinetuneHyperparams().steps
    seq_len: SeqLen = 256
    batch_size: BatchSize = 1
    gradient_accumulation: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    job: CreateJob | None = None

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


class PricedEstimate(ShownEstimate, frozen=True, kw_only=True):
    """Of a whole job it also says the sizes that its plan comes to, and the tokens that it trains on."""

    params_before: int | msgspec.UnsetType = msgspec.UNSET
    params_after: int | msgspec.UnsetType = msgspec.UNSET
    tokens: int | msgspec.UnsetType = msgspec.UNSET


def _priced(estimate: Estimate, **of_a_job: Any) -> PricedEstimate:
    return PricedEstimate(**msgspec.structs.asdict(show_estimate(estimate)), **of_a_job)


@post(
    "/pricing/estimate",
    guards=[needs("read", "train", "billing")],
    status_code=200,
    summary="Estimate what a job costs",
    answer=ESTIMATE,
    problems=("not_found", "unsupported_architecture", "no_fitting_pool"),
    example=EXAMPLE,
)
async def estimate_price(
    request: Request[Any, Any, Any],
    data: JSONBody[EstimateRequest],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> PricedEstimate:
    """A job created from the same numbers or the same body costs this to the micro-dollar, while prices stay."""
    await once.allow()
    said = msgspec.json.decode(await request.body())
    prices = await current_prices(services.pool)
    if data.job is None:
        try:
            return _priced(_of_numbers(data, prices))
        except TooManyTokensError as error:
            raise invalid([FieldError("/tokens", str(error))]) from error
    others = [FieldError(f"/{name}", "the job says it all") for name in said if name != "job"]
    if others:
        raise invalid(others)
    try:
        (spec, estimate, _), _ = await plan_job(services, caller, data.job, said["job"], prices)
    except ProblemError as error:
        inside = [FieldError(f"/job{one.pointer}", one.detail) for one in error.errors]
        raise ProblemError(error.problem.code, error.detail, inside) from error
    return _priced(
        estimate,
        params_before=spec.params_before,
        params_after=spec.params_after,
        tokens=spec.total_steps * spec.tokens_per_step,
    )


def _of_numbers(data: EstimateRequest, prices: PriceTable) -> Estimate:
    """Raises ProblemError validation_failed."""
    before, after = data.params_before, data.params_after
    if before is None:
        raise invalid([FieldError("/params_before", "is required, or a job")])
    if data.type == "contract":
        return estimate_contract(prices, before)
    if data.type == "finetune":
        if after not in (None, before):
            raise invalid([FieldError("/params_after", f"fine-tuning keeps the size, {before}")])
        return estimate_finetune(prices, before, data.training_tokens)
    if after is None:
        raise invalid([FieldError("/params_after", "is required for type train")])
    if after < before:
        raise invalid([FieldError("/params_after", f"is less than params_before, {before}")])
    return estimate_train(prices, before, after, data.training_tokens)
