"""The torch-free parameter counts are those of the models that transformers builds."""

from typing import Any

import pytest
import torch
from fusion_core.growth_plan import plan_growth
from fusion_core.model_shapes import FAMILY_CONFIGS, shape_of
from fusion_engine.families import FAMILIES
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

CLASSES: dict[str, type[PreTrainedConfig]] = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "Gemma2ForCausalLM": Gemma2Config,
    "Gemma3ForCausalLM": Gemma3TextConfig,
    "SmolLM3ForCausalLM": SmolLM3Config,
    "FalconH1ForCausalLM": FalconH1Config,
}
SMALL = {
    "num_hidden_layers": 7,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "pad_token_id": None,
}
SSM = {"mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 10}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False, "head_dim": 20},
    {"attention_bias": True, "mlp_bias": True},
    {"num_key_value_heads": None, "head_dim": 12},
]
FALCON_VARIANTS: list[dict[str, Any]] = [
    {"mamba_rms_norm": True, "mamba_n_groups": 2},
    {"mamba_proj_bias": True, "projectors_bias": True, "mamba_conv_bias": False, "mamba_d_conv": 3},
    {"mamba_d_ssm": None, "mamba_d_head": "auto", "mamba_expand": 3},
]
CASES = [(name, variant) for name in CLASSES for variant in VARIANTS] + [
    ("FalconH1ForCausalLM", variant) for variant in FALCON_VARIANTS
]


def counted(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    assert type(model).__name__ in FAMILY_CONFIGS
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_family_is_in_both_tables() -> None:
    assert CLASSES.keys() == FAMILY_CONFIGS.keys()
    assert {config.family for config in FAMILY_CONFIGS.values()} == FAMILIES.keys()


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_counts_of_small_models(architecture: str, variant: dict[str, Any]) -> None:
    settings = SMALL | (SSM if architecture.startswith("Falcon") else {}) | variant
    if settings["num_key_value_heads"] is None and architecture.startswith(("Gemma", "Mistral")):
        settings["num_key_value_heads"] = 4  # their config classes allow no null
    config = CLASSES[architecture](**settings)
    assert shape_of({"architectures": [architecture]} | settings).params == counted(config)
    saved = config.to_dict() | {"architectures": [architecture]}
    assert shape_of(saved).params == counted(config)


@pytest.mark.parametrize("architecture", CLASSES)
def test_what_a_config_leaves_out_is_what_its_class_says(architecture: str) -> None:
    config = CLASSES[architecture]()
    shape = shape_of({"architectures": [architecture]})
    assert shape.params == counted(config)
    assert (shape.layers, shape.ffn, shape.vocab) == (
        config.num_hidden_layers,
        config.intermediate_size,
        config.vocab_size,
    )
    types = config.to_dict().get("layer_types")
    assert shape_of({"architectures": [architecture], "layer_types": types}).group == shape.group


@pytest.mark.parametrize("architecture", CLASSES)
def test_grown_counts(architecture: str) -> None:
    settings = SMALL | (SSM if architecture.startswith("Falcon") else {})
    config = {"architectures": [architecture]} | settings
    depth, width = plan_growth(config), plan_growth(config, axis="width", growth_factor=1.3)
    layers: dict[str, Any] = {"num_hidden_layers": depth.layers_after}
    if depth.own_head:
        layers["tie_word_embeddings"] = False
    assert counted(CLASSES[architecture](**(settings | layers))) == depth.params_after > depth.params_before
    ffn = {"intermediate_size": width.ffn_after}
    assert counted(CLASSES[architecture](**(settings | ffn))) == width.params_after > width.params_before
