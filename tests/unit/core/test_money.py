"""Prices: exact integers, the sum of their lines, and never less for more."""

import msgspec
import pytest
from fusion_core.job_spec import Hyperparams
from fusion_core.money import (
    DEFAULT_PRICES,
    MAX_PARAMS,
    MAX_TOKENS,
    Estimate,
    PriceError,
    Tier,
    bill_cancelled,
    estimate_contract,
    estimate_train,
)
from hypothesis import given
from hypothesis import strategies as st

sizes = st.integers(1, MAX_PARAMS)
growths = st.tuples(sizes, sizes).map(lambda pair: (min(pair), max(pair)))
token_counts = st.integers(0, MAX_TOKENS)


def lines(estimate: Estimate) -> dict[str, int]:
    return {item.label: item.amount_microusd for item in estimate.line_items}


@given(growths, token_counts)
def test_an_estimate_is_the_integer_sum_of_its_lines(growth: tuple[int, int], tokens: int) -> None:
    estimate = estimate_train(DEFAULT_PRICES, *growth, tokens)
    amounts = [item.amount_microusd for item in estimate.line_items]
    assert all(type(amount) is int for amount in amounts)
    assert estimate.total_microusd == sum(amounts)
    assert len(lines(estimate)) == len(amounts), "no label twice"


@given(growths, token_counts, token_counts)
def test_more_tokens_never_cost_less(growth: tuple[int, int], one: int, other: int) -> None:
    less, more = (estimate_train(DEFAULT_PRICES, *growth, tokens) for tokens in sorted((one, other)))
    assert less.total_microusd <= more.total_microusd


@given(growths, sizes, token_counts)
def test_a_larger_result_never_costs_less(growth: tuple[int, int], other: int, tokens: int) -> None:
    before, after = growth
    larger = max(after, other)
    cheaper = estimate_train(DEFAULT_PRICES, before, after, tokens)
    assert estimate_train(DEFAULT_PRICES, before, larger, tokens).total_microusd >= cheaper.total_microusd


@given(growths, token_counts)
def test_the_minimum_is_a_line_only_where_it_is_needed(growth: tuple[int, int], tokens: int) -> None:
    estimate = estimate_train(DEFAULT_PRICES, *growth, tokens)
    work = sum(amount for label, amount in lines(estimate).items() if label != "minimum")
    assert ("minimum" in lines(estimate)) == (work < DEFAULT_PRICES.minimum)
    assert estimate.total_microusd == max(work, DEFAULT_PRICES.minimum)
    assert ("growth" in lines(estimate)) == (growth[0] < growth[1])


@given(growths, token_counts, st.data())
def test_a_cancelled_job_never_owes_more_than_the_estimate(
    growth: tuple[int, int], tokens: int, data: st.DataObject
) -> None:
    estimate = estimate_train(DEFAULT_PRICES, *growth, tokens)
    committed = data.draw(st.integers(0, tokens))
    bill = bill_cancelled(estimate, growth_done=data.draw(st.booleans()), tokens_committed=committed)
    assert 0 <= bill.total_microusd <= estimate.total_microusd
    assert "minimum" not in lines(bill)
    nothing = bill_cancelled(estimate, growth_done=False, tokens_committed=0)
    assert nothing.total_microusd == 0


def test_the_published_examples() -> None:
    billion = 1_000_000_000
    grown = estimate_train(DEFAULT_PRICES, 1_550_000_000, 2_360_000_000, 1_536_000)
    assert lines(grown) == {"training": 4_608_000, "growth": 20_250_000}
    assert estimate_contract(DEFAULT_PRICES, 8 * billion).total_microusd == 20_000_000
    one_token = estimate_train(DEFAULT_PRICES, billion, billion, 1)
    assert lines(one_token) == {"training": 3, "minimum": 1_999_997}


@pytest.mark.parametrize("tier", DEFAULT_PRICES.tiers)
def test_a_tier_holds_its_limit_and_not_one_parameter_more(tier: Tier) -> None:
    limit = tier.max_params
    assert DEFAULT_PRICES.tier_of(limit) is tier
    if tier is DEFAULT_PRICES.tiers[-1]:
        with pytest.raises(PriceError, match="beyond the largest"):
            DEFAULT_PRICES.tier_of(limit + 1)
    else:
        assert DEFAULT_PRICES.tier_of(limit + 1) is not tier


@pytest.mark.parametrize(("before", "after", "tokens"), [(0, 1, 1), (2, 1, 1), (1, 1, -1)])
def test_impossible_numbers_are_refused(before: int, after: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="must"):
        estimate_train(DEFAULT_PRICES, before, after, tokens)


# -- from hyperparameters --------------------------------------------------------------------------------------------

HYPERPARAMS = st.builds(  # below MAX_TOKENS, whatever is drawn
    Hyperparams,
    turns=st.integers(1, 10),
    cycles=st.integers(1, 1000),
    steps_per_cycle=st.integers(1, 10_000),
    train_steps=st.none() | st.integers(1, 10_000_000),
    seq_len=st.integers(8, 4096),
    batch_size=st.integers(1, 64),
    gradient_accumulation=st.integers(1, 16),
)
COUNTED = ("turns", "cycles", "steps_per_cycle", "seq_len", "batch_size", "gradient_accumulation")


@given(growths, HYPERPARAMS, st.sampled_from(COUNTED))
def test_more_of_any_setting_that_counts_never_costs_less(
    growth: tuple[int, int], hyperparams: Hyperparams, name: str
) -> None:
    larger = msgspec.structs.replace(hyperparams, **{name: getattr(hyperparams, name) + 1})
    cheaper, dearer = (
        estimate_train(DEFAULT_PRICES, *growth, one.training_tokens).total_microusd for one in (hyperparams, larger)
    )
    counts = hyperparams.train_steps is None or name not in ("cycles", "steps_per_cycle")
    assert cheaper <= dearer if counts else cheaper == dearer


@given(growths, HYPERPARAMS)
def test_turns_scale_the_training_line_and_leave_growth_alone(growth: tuple[int, int], one: Hyperparams) -> None:
    once = lines(estimate_train(DEFAULT_PRICES, *growth, msgspec.structs.replace(one, turns=1).training_tokens))
    all_turns = lines(estimate_train(DEFAULT_PRICES, *growth, one.training_tokens))
    assert 0 <= one.turns * once["training"] - all_turns["training"] < one.turns, "each line is rounded up once"
    assert once.get("growth") == all_turns.get("growth")


@given(sizes, st.integers(1, 10**9), st.integers(1, 10**6), st.data())
def test_stopped_and_gone_on_pays_each_step_once(
    params: int, steps: int, tokens_per_step: int, data: st.DataObject
) -> None:
    """The first job cancelled at a checkpoint and the one that goes on from there, beside one undisturbed job."""
    at = data.draw(st.integers(1, steps))
    whole = estimate_train(DEFAULT_PRICES, params, params, steps * tokens_per_step)
    first = bill_cancelled(whole, growth_done=True, tokens_committed=at * tokens_per_step)
    rest = estimate_train(DEFAULT_PRICES, params, params, (steps - at) * tokens_per_step)
    assert 0 <= lines(first)["training"] + lines(rest)["training"] - lines(whole)["training"] <= 1
