"""POST /training/recommend: a starting point for one base model and one dataset, each figure with its reason."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from fusion_core.db.pool import queries
from fusion_core.growth_plan import GrowthPlan, plan_growth
from fusion_core.job_spec import Hyperparams
from fusion_core.money import estimate_train
from litestar import post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.base_models import find_base
from fusion_api.dataset_contents import tokens_of
from fusion_api.datasets import ready_dataset
from fusion_api.idempotency import Once
from fusion_api.job_creation import plannable, priced
from fusion_api.pricing import ShownEstimate, current_prices, show_estimate
from fusion_api.services import Services

SMALL_PARAMS = 3_000_000_000
# The rate that suits a model of 1.5B parameters; larger models take smaller ones, by the square root of the ratio.
REFERENCE_LR, REFERENCE_PARAMS = 1e-4, 1_550_000_000
LR_RANGE = (1e-5, 1e-3)
CYCLES, SHORT_CYCLE, LONG_CYCLE = 6, 500, 2000
SEQ_LENS = (128, 256, 512, 1024, 2048, 4096)
PASSES = 2  # how often a turn may read the data before it repeats itself

EXAMPLE = {
    "base_model_id": "0198b3a2-6f00-7000-8000-000000000001",
    "dataset_id": "0198b3a2-6f00-7000-8000-000000000002",
}


class RecommendRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    base_model_id: UUID
    dataset_id: UUID
    turns: Annotated[int, msgspec.Meta(ge=1, le=10)] | None = None


class Reason(msgspec.Struct, frozen=True):
    setting: str
    value: float | int
    reason: str


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """`hyperparams` goes into POST /jobs as it is."""

    hyperparams: dict[str, Any]
    reasons: list[Reason]
    warnings: list[str]
    dataset_tokens: int
    params_before: int
    params_after: int
    estimate: ShownEstimate


def recommend_lr(params: int) -> float:
    """Two significant digits of the reference rate times sqrt(reference size / size), within the range."""
    rate = REFERENCE_LR * (REFERENCE_PARAMS / params) ** 0.5
    return float(f"{min(max(rate, LR_RANGE[0]), LR_RANGE[1]):.1e}")


def recommend_seq_len(tokens_per_row: float, longest: int | None) -> int:
    """The shortest usual length that holds twice an average row, within what the model takes."""
    fitting = [length for length in SEQ_LENS if longest is None or length <= longest] or [longest or SEQ_LENS[0]]
    return next((length for length in fitting if length >= 2 * tokens_per_row), fitting[-1])


def recommend_steps(tokens: int, seq_len: int) -> int:
    """Steps of a cycle so that a turn reads the data about twice, between 500 and 2,000."""
    return min(max(round(PASSES * tokens / seq_len / CYCLES), SHORT_CYCLE), LONG_CYCLE)


def recommend_warnings(tokens: int, hyperparams: Hyperparams, exact: bool) -> list[str]:
    read = hyperparams.steps_per_turn * hyperparams.tokens_per_step
    found = []
    if tokens < read:
        times = read / max(1, tokens)
        found.append(
            f"The dataset has {tokens:,} tokens and one turn reads {read:,}: every row is read {times:.1f} times."
            " More data helps more than more turns."
        )
    if tokens < hyperparams.seq_len:
        found.append("The dataset is shorter than one sequence: a job on it would fail.")
    if tokens > 20 * read:
        found.append(f"One turn reads a small part of the {tokens:,} tokens; raise steps_per_cycle to read more.")
    if hyperparams.steps_per_cycle < SHORT_CYCLE:
        found.append(f"steps_per_cycle is under {SHORT_CYCLE}, which under-trains.")
    if not exact:
        found.append("The number of tokens is projected from the first eight megabytes.")
    return found


@post(
    "/training/recommend",
    guards=[needs("read", "train")],
    status_code=200,
    summary="Recommend settings",
    problems=(
        "not_found",
        "dataset_not_ready",
        "tokenizer_unreadable",
        "unsupported_architecture",
    ),
    example=EXAMPLE,
)
async def recommend(
    data: JSONBody[RecommendRequest],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> Recommendation:
    """A starting point, not a guarantee: run one turn, look at the curve, then choose."""
    await once.allow()
    base = await find_base(services, caller, data.base_model_id)
    dataset = await ready_dataset(services, caller, data.dataset_id)
    tokens, exact = await tokens_of(services, caller, data.dataset_id, data.base_model_id)
    with plannable(base):
        plan = plan_growth(base.config)
    rows = await queries.training_rows_of_dataset(services.pool, dataset_id=dataset["id"])
    positions = base.config.get("max_position_embeddings")
    longest = positions if isinstance(positions, int) else None
    reasons = _reasons(data, plan, tokens, tokens / max(1, rows), longest)
    hyperparams = msgspec.convert({reason.setting: reason.value for reason in reasons}, Hyperparams)
    prices = await current_prices(services.pool)
    with priced(base):
        estimate = estimate_train(prices, plan.params_before, plan.params_after, hyperparams.training_tokens)
    return Recommendation(
        hyperparams={reason.setting: reason.value for reason in reasons},
        reasons=reasons,
        warnings=recommend_warnings(tokens, hyperparams, exact),
        dataset_tokens=tokens,
        params_before=plan.params_before,
        params_after=plan.params_after,
        estimate=show_estimate(estimate),
    )


def _reasons(
    data: RecommendRequest, plan: GrowthPlan, tokens: int, tokens_per_row: float, longest: int | None
) -> list[Reason]:
    small = plan.params_before <= SMALL_PARAMS
    turns = data.turns or (2 if small else 1)
    why_turns = "as asked for" if data.turns else (
        "up to 3B parameters two turns are the biggest jump for the money"
        if small
        else "above 3B parameters look at one turn's curve first, then add turns"
    )  # fmt: skip
    seq_len = recommend_seq_len(tokens_per_row, longest)
    steps = recommend_steps(tokens, seq_len)
    return [
        Reason("turns", turns, why_turns),
        Reason("lr", recommend_lr(plan.params_before), "scaled to the size of the base model by its square root"),
        Reason("seq_len", seq_len, f"rows have {tokens_per_row:,.0f} tokens on average; this holds two of them"),
        Reason("cycles", CYCLES, "the default: how often a turn is evaluated"),
        Reason("steps_per_cycle", steps, f"a turn then reads {CYCLES * steps * seq_len:,} of the {tokens:,} tokens"),
    ]
