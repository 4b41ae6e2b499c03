"""Contraction's arithmetic: how many layers, how wide, how many parameters, and what is refused."""

import msgspec
import pytest
from fusion_core.contraction_plan import ContractionPlan, emitted_width, plan_contraction

LLAMA_1B: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}


def test_the_plan_of_llama_1b_counts_every_parameter() -> None:
    plan = plan_contraction(LLAMA_1B, 0.5)
    assert (plan.layers, plan.layers_to_contract, plan.ffn_before, plan.ffn_after) == (16, 8, 8192, 6144)
    assert plan.params_before == 1_235_814_400
    assert plan.params_after == 1_235_814_400 - 16 * 2048 * 3 * 2048
    assert plan.requested_shrinkage == pytest.approx(plan.achieved_shrinkage)
    assert plan.achieved_shrinkage == pytest.approx(0.1629, abs=1e-4)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=ContractionPlan) == plan


def test_biases_of_the_ffn_are_counted() -> None:
    plain, biased = (plan_contraction(LLAMA_1B | {"mlp_bias": bias}, 0.5) for bias in (False, True))
    removed = [plan.params_before - plan.params_after for plan in (plain, biased)]
    assert removed[1] - removed[0] == 16 * 2048 * 2, "gate and up have a bias for each channel, down has none"


@pytest.mark.parametrize(("depth", "expected"), [(1, 1), (7, 7), (8, 8), (24, 8)])
def test_an_omitted_number_of_layers_is_eight_or_the_depth(depth: int, expected: int) -> None:
    assert plan_contraction(LLAMA_1B | {"num_hidden_layers": depth}, 0.5).layers_to_contract == expected


@pytest.mark.parametrize("layers", [0, -1, 17])
def test_a_number_of_layers_beyond_the_depth_is_refused_with_the_depth(layers: int) -> None:
    with pytest.raises(ValueError, match=f"num_layers_to_contract is {layers}; this model has 16 layers"):
        plan_contraction(LLAMA_1B, 0.5, layers)


@pytest.mark.parametrize("ratio", [0.0, 0.09, 0.91, 1.0, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"it must lie between 0\.1 and 0\.9"):
        plan_contraction(LLAMA_1B, ratio)


@pytest.mark.parametrize(
    ("ffn", "share", "expected"),
    [
        (8192, 0.25, 6144),
        (8192, 0.26, 6016),  # 6062 lies nearer to 6016 than to 6144
        (4608, 0.1 / 24, 4480),  # 19 channels asked for: one multiple goes
        (2048, 0.9, 256),  # 204.8 lies nearer to 256 than to 128
        (2048, 0.99, 128),
        (2047, 0.5, 1024),
        (64, 0.25, 48),
        (16, 0.9, 8),
        (9, 0.1, 8),
        (100, 0.01, 96),
    ],
)
def test_the_width_is_a_multiple_and_always_narrower(ffn: int, share: float, expected: int) -> None:
    assert emitted_width(ffn, share) == expected


def test_an_ffn_that_cannot_shrink_is_refused() -> None:
    with pytest.raises(ValueError, match="the FFN has 8 channels"):
        emitted_width(8, 0.5)


def test_the_requested_shrinkage_is_the_ratio_of_the_chosen_layers() -> None:
    plan = plan_contraction(LLAMA_1B, 0.1, 1)
    assert plan.ffn_after == 8064, "51 channels a layer, rounded to a multiple"
    assert plan.requested_shrinkage == pytest.approx(819.2 * 3 * 2048 / plan.params_before)
    assert plan.achieved_shrinkage == pytest.approx(16 * 128 * 3 * 2048 / plan.params_before)


def test_the_hash_names_the_plan() -> None:
    one, other = plan_contraction(LLAMA_1B, 0.5), plan_contraction(LLAMA_1B, 0.6)
    assert one.sha256() == plan_contraction(LLAMA_1B, 0.5).sha256() != other.sha256()
