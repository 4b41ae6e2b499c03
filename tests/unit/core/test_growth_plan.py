"""Growth plans: how many blocks, where they go, what is refused."""

from typing import Any

import msgspec
import pytest
from fusion_core.growth_plan import GrowthPlan, place, plan_growth
from fusion_core.model_shapes import UnsupportedArchitectureError, shape_of
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
    shape, plan = shape_of(base), plan_growth(base, growth_factor=factor, placement="even", own_head=False)
    added = len(plan.new_after)
    assert plan.params_before == shape.params
    assert plan.params_added == added * shape.block_params
    assert plan.layers_after == shape.layers + added
    assert (added == 0) == (factor == 1.0)
    distance = abs(plan.params_added - (factor - 1) * shape.params)
    assert distance <= shape.block_params / 2 + 1e-6 * shape.params or added == 1


@given(configs, factors, st.sampled_from(["depth", "width"]))
def test_a_head_of_its_own_is_paid_out_of_the_factor(base: dict[str, Any], factor: float, axis: Any) -> None:
    shape = shape_of(base)
    if factor == 1.0:
        with pytest.raises(ValueError, match="own_head adds parameters and growth_factor"):
            plan_growth(base, growth_factor=factor, axis=axis, own_head=True)
        return
    plan = plan_growth(base, growth_factor=factor, axis=axis, own_head=True)
    assert plan.own_head is shape.tied
    head = shape.head_params if shape.tied else 0
    channels = plan.ffn_after - plan.ffn_before
    blocks_params = len(plan.new_after) * shape.block_params + channels * shape.layers * shape.ffn_channel_params
    assert plan.params_added == head + blocks_params > head
    step = shape.block_params if axis == "depth" else 8 * shape.layers * shape.ffn_channel_params
    least = len(plan.new_after) == 1 or channels == 8
    assert abs(plan.params_added - (factor - 1) * shape.params) <= step / 2 + 1e-6 * shape.params or least


@given(configs, factors)
def test_a_tied_model_gets_a_head_where_the_factor_pays_for_it_and_a_block(base: dict[str, Any], factor: float) -> None:
    shape = shape_of(base)
    plan = plan_growth(base, growth_factor=factor, own_head=None)
    pays = (factor - 1.0) * shape.params >= shape.head_params + shape.block_params
    assert plan.own_head is (shape.tied and pays)
    assert plan == plan_growth(base, growth_factor=factor, own_head=pays)
    for request in ({"layers_added": 1}, {"axis": "width", "growth_factor": factor}):
        assert plan_growth(base, **request, own_head=None) == plan_growth(base, **request, own_head=False)


def test_a_head_beside_explicit_layers_comes_on_top() -> None:
    tied = config(tied=True)
    with_head, without = (plan_growth(tied, layers_added=2, own_head=wanted) for wanted in (True, False))
    assert with_head.params_after - without.params_after == shape_of(tied).head_params
    assert with_head.new_after == without.new_after
    assert place(with_head, [0, 0]).own_head


@given(configs, factors)
def test_the_layout_holds_every_old_block_in_order_and_each_copy_above_its_source(
    base: dict[str, Any], factor: float
) -> None:
    plan = plan_growth(base, growth_factor=factor, placement="even")
    layout = plan.layout()
    assert len(layout) == plan.layers_after
    assert [source for source, new in layout if not new] == list(range(plan.layers_before))
    assert [source for source, new in layout if new] == list(plan.new_after)
    assert [source for source, _ in layout] == sorted(source for source, _ in layout)


@given(configs, factors)
def test_new_blocks_are_spread_evenly_and_the_last_is_on_top(base: dict[str, Any], factor: float) -> None:
    plan = plan_growth(base, growth_factor=factor, placement="even")
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
    plan = plan_growth(tiny_llama)
    assert len(plan.new_after) == 13
    assert len(plan.sha256()) == 64


def test_equal_plans_have_equal_hashes_and_others_do_not() -> None:
    assert plan_growth(config(), growth_factor=1.5).sha256() == plan_growth(config(), growth_factor=1.5).sha256()
    assert plan_growth(config(), growth_factor=1.5).sha256() != plan_growth(config(), growth_factor=2.0).sha256()


@pytest.mark.parametrize("factor", [0.99, 4.01, float("nan"), float("inf")])
def test_factors_out_of_bounds_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"between 1\.0 and 4\.0"):
        plan_growth(config(), growth_factor=factor)


@pytest.mark.parametrize("architectures", [["FalconForCausalLM"], [], None, "LlamaForCausalLM"])
def test_other_architectures_are_refused_and_the_supported_named(architectures: object) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="these can: LlamaForCausalLM"):
        plan_growth(config() | {"architectures": architectures})


FALCON_H1 = {
    "architectures": ["FalconH1ForCausalLM"],
    "num_hidden_layers": 24,
    "hidden_size": 2048,
    "intermediate_size": 4608,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_d_ssm": 3072,
    "mamba_n_heads": 48,
    "mamba_d_head": 64,
    "mamba_d_state": 256,
    "mamba_rms_norm": True,
    "vocab_size": 65_537,
}


def test_the_default_growth_of_falcon_h1() -> None:
    plan = plan_growth(FALCON_H1)
    assert (plan.params_before, plan.params_after) == (1_554_863_488, 2_358_877_168)
    assert plan_growth(FALCON_H1, own_head=None) == plan_growth(FALCON_H1, own_head=True) == plan
    assert (plan.layers_before, plan.layers_after) == (24, 39)
    assert min(plan.new_after) >= 11


@pytest.mark.parametrize(("layers", "added", "after"), [(6, 2, (3, 5)), (6, 4, (2, 3, 4, 5)), (1, 2, (0, 0))])
def test_the_upper_half_is_where_new_blocks_measured_best(layers: int, added: int, after: tuple[int, ...]) -> None:
    assert plan_growth(config(layers), layers_added=added).new_after == after


def gemma(architecture: str, layers: int, **more: Any) -> dict[str, Any]:
    return config(layers, head_dim=16, **more) | {"architectures": [architecture]}


@pytest.mark.parametrize(
    ("base", "group"),
    [
        (gemma("Gemma2ForCausalLM", 26), 2),
        (gemma("Gemma3ForCausalLM", 26), 6),
        (gemma("Gemma3ForCausalLM", 26, sliding_window_pattern=4), 4),
        (gemma("Gemma3ForCausalLM", 7, layer_types=["s", "s", "f", "s", "s", "f", "s"]), 3),
        (config(7, layer_types=["s", "f", "s", "f", "s", "f", "s"]), 1),
    ],
)
def test_depth_grows_by_whole_patterns_of_attention_types(base: dict[str, Any], group: int) -> None:
    shape = shape_of(base)
    plan = plan_growth(base, growth_factor=2.0)
    assert plan.group == shape.group == group
    assert len(plan.new_after) % group == 0
    kinds = [number % group for number in range(shape.layers)]
    grown = [kinds[source] for source, _ in plan.layout()]
    assert grown == [number % group for number in range(plan.layers_after)]
    assert [source for source, new in plan.layout() if new] == list(plan.new_after)
    assert plan.params_added == len(plan.new_after) * shape.block_params


@pytest.mark.parametrize(
    ("base", "layers_added", "message"),
    [
        (config(4, vocab_size=8), 0, "for this model it can be 1 to 12"),
        (config(4, vocab_size=8), 13, "for this model it can be 1 to 12"),
        (
            gemma("Gemma3ForCausalLM", 12, vocab_size=8),
            4,
            "repeats every 6 layers, so it can be 6, 12 and so on up to 36",
        ),
        (gemma("Gemma3ForCausalLM", 5), 1, "no whole group can be added; use growth_axis width"),
    ],
)
def test_impossible_numbers_of_layers_say_what_is_possible(
    base: dict[str, Any], layers_added: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_growth(base, layers_added=layers_added)


@given(configs, factors)
def test_width_comes_nearest_to_the_factor_in_whole_steps(base: dict[str, Any], factor: float) -> None:
    shape, plan = shape_of(base), plan_growth(base, growth_factor=factor, axis="width")
    assert plan.ffn_after % 8 == 0
    assert (plan.ffn_after == plan.ffn_before) == (factor == 1.0)
    assert plan.layers_after == plan.layers_before
    step = 8 * shape.layers * shape.ffn_channel_params
    distance = abs(plan.params_added - (factor - 1) * shape.params)
    assert distance <= step / 2 + 1e-6 * shape.params or plan.ffn_after == plan.ffn_before + 8


def test_wide_models_widen_by_multiples_of_128() -> None:
    plan = plan_growth(FALCON_H1, axis="width")
    assert plan.ffn_after % 128 == 0
    assert plan.params_after / plan.params_before == pytest.approx(1.52, abs=0.01)
    with pytest.raises(ValueError, match="layers_added adds depth"):
        plan_growth(FALCON_H1, axis="width", layers_added=2)


@pytest.mark.parametrize("axis", ["depth", "width"])
def test_a_factor_of_one_is_the_empty_plan(axis: Any) -> None:
    plan = plan_growth(FALCON_H1, growth_factor=1.0, axis=axis)
    assert plan.params_added == 0
    assert plan.layout() == [(number, False) for number in range(24)]


def test_the_diagnosis_can_place_the_same_groups_elsewhere() -> None:
    plan = plan_growth(gemma("Gemma2ForCausalLM", 8), layers_added=4)
    moved = place(plan, [3, 0])
    assert moved.new_after == (0, 1, 6, 7)
    assert (moved.params_after, moved.layers_after) == (plan.params_after, plan.layers_after)
    for wrong in ([0], [0, 4], [-1, 0], [0, 1, 2]):
        with pytest.raises(ValueError, match="cannot be the places of 2 new groups over 4 old ones"):
            place(plan, wrong)


def test_a_plan_survives_its_json() -> None:
    plan = plan_growth(FALCON_H1)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=GrowthPlan) == plan
