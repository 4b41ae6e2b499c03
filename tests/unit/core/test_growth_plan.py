"""Growth plans: how many blocks, where they go, what is refused."""

from typing import Any

import pytest
from fusion_core.growth_plan import UnsupportedArchitectureError, plan_depth_growth, shape_of
from hypothesis import given
from hypothesis import strategies as st


def config(layers: int = 4, *, tied: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "tie_word_embeddings": tied,
    } | more


configs = st.builds(config, st.integers(1, 200), tied=st.booleans(), vocab_size=st.integers(8, 100_000))
factors = st.floats(1.0, 4.0)


@given(configs, factors)
def test_the_plan_adds_whole_blocks_nearest_to_the_factor(base: dict[str, Any], factor: float) -> None:
    shape, plan = shape_of(base), plan_depth_growth(base, factor)
    added = len(plan.new_after)
    assert plan.params_before == shape.params
    assert plan.params_added == added * shape.block_params
    assert plan.layers_after == shape.layers + added
    assert (added == 0) == (factor == 1.0)
    distance = abs(plan.params_added - (factor - 1) * shape.params)
    assert distance <= shape.block_params / 2 + 1e-6 * shape.params or added == 1


@given(configs, factors)
def test_the_layout_holds_every_old_block_in_order_and_each_copy_above_its_source(
    base: dict[str, Any], factor: float
) -> None:
    plan = plan_depth_growth(base, factor)
    layout = plan.layout()
    assert len(layout) == plan.layers_after
    assert [source for source, new in layout if not new] == list(range(plan.layers_before))
    assert [source for source, new in layout if new] == list(plan.new_after)
    assert [source for source, _ in layout] == sorted(source for source, _ in layout)


@given(configs, factors)
def test_new_blocks_are_spread_evenly_and_the_last_is_on_top(base: dict[str, Any], factor: float) -> None:
    plan = plan_depth_growth(base, factor)
    counts = [plan.new_after.count(layer) for layer in range(plan.layers_before)]
    if not plan.new_after:
        return
    assert plan.new_after[-1] == plan.layers_before - 1
    gaps = [later - earlier for earlier, later in zip(plan.new_after, plan.new_after[1:], strict=False)]
    spacing = plan.layers_before / len(plan.new_after)
    assert all(abs(gap - spacing) <= 1 for gap in gaps)
    assert sum(counts) == len(plan.new_after)


def test_a_known_model() -> None:
    """TinyLlama's config: 1,100,048,384 parameters, as its authors publish."""
    tiny_llama = config(
        22,
        hidden_size=2048,
        intermediate_size=5632,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32_000,
    )
    assert shape_of(tiny_llama).params == 1_100_048_384
    plan = plan_depth_growth(tiny_llama)
    assert len(plan.new_after) == 13
    assert len(plan.sha256()) == 64


def test_equal_plans_have_equal_hashes_and_others_do_not() -> None:
    assert plan_depth_growth(config(), 1.5).sha256() == plan_depth_growth(config(), 1.5).sha256()
    assert plan_depth_growth(config(), 1.5).sha256() != plan_depth_growth(config(), 2.0).sha256()


@pytest.mark.parametrize("factor", [0.99, 4.01, float("nan"), float("inf")])
def test_factors_out_of_bounds_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"between 1\.0 and 4\.0"):
        plan_depth_growth(config(), factor)


@pytest.mark.parametrize("architectures", [["FalconForCausalLM"], [], None, "LlamaForCausalLM"])
def test_other_architectures_are_refused_and_the_supported_named(architectures: object) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="these can: LlamaForCausalLM"):
        plan_depth_growth(config() | {"architectures": architectures})
