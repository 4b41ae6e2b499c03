"""Growth changes no logit, the plan's arithmetic counts every parameter, and the guard notices what it must."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_core.growth_plan import GrowthPlan, plan_growth
from fusion_engine.base_folder import BaseFolder, open_base
from fusion_engine.grow import grow, grown_config, new_blocks
from fusion_engine.guard import check_growth, guard_prompts
from fusion_engine.outcomes import RejectedError
from fusion_engine.safetensors_stream import read_header
from transformers import AutoModelForCausalLM

CPU = torch.device("cpu")


def prompts() -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    return guard_prompts([np.arange(20, dtype=np.int32)], 24)


def opened(folder: Path, growth_factor: float = 1.52) -> tuple[BaseFolder, GrowthPlan]:
    config = json.loads((folder / "config.json").read_text())
    plan = plan_growth(config, growth_factor=growth_factor, placement="even", own_head=False)
    return open_base(folder, plan), plan


@pytest.fixture
def biased(base_maker: Callable[..., Path]) -> Iterator[Path]:
    """A base whose biases are not zero, as they are after initialisation, so that a forgotten one shows."""
    folder = base_maker(attention_bias=True, mlp_bias=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder)
    yield folder


@pytest.mark.parametrize(
    "overrides",
    [{}, {"tie_word_embeddings": False}, {"head_dim": 16}, {"dtype": "bfloat16"}],
    ids=["tied", "untied", "head_dim", "bf16"],
)
@pytest.mark.parametrize("growth_factor", [1.1, 2.6])
def test_growth_changes_no_logit_and_adds_what_the_plan_says(
    base_maker: Callable[..., Path], tmp_path: Path, overrides: dict[str, Any], growth_factor: float
) -> None:
    base, plan = opened(base_maker(**overrides), growth_factor)
    grow(base, plan, tmp_path / "grown")
    assert check_growth(base.path, tmp_path / "grown", prompts(), CPU) == 0.0
    counts = [
        AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).num_parameters()
        for folder in (base.path, tmp_path / "grown")
    ]
    assert counts == [plan.params_before, plan.params_after]


def test_growth_silences_biases_too(biased: Path, tmp_path: Path) -> None:
    base, plan = opened(biased)
    grow(base, plan, tmp_path / "grown")
    assert check_growth(biased, tmp_path / "grown", prompts(), CPU) == 0.0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", local_files_only=True)
    assert model.num_parameters() == plan.params_after


@pytest.mark.parametrize("writer", ["self_attn.o_proj.bias", "mlp.down_proj.weight"])
def test_the_guard_notices_one_forgotten_projection(biased: Path, tmp_path: Path, writer: str) -> None:
    base, plan = opened(biased)
    grow(base, plan, tmp_path / "grown")
    name = f"model.layers.{new_blocks(plan)[0]}.{writer}"
    tensor = read_header(tmp_path / "grown" / "model.safetensors")[name]
    with (tmp_path / "grown" / "model.safetensors").open("r+b") as file:
        file.seek(tensor.offset)
        file.write(np.full(4, 0.01, dtype=np.float32).tobytes())
    with pytest.raises(RejectedError) as caught:
        check_growth(biased, tmp_path / "grown", prompts(), CPU)
    assert caught.value.code == "growth_not_preserving"


def test_a_new_block_is_a_copy_but_for_its_residual_writers(tiny_base: Path, tmp_path: Path) -> None:
    base, plan = opened(tiny_base)
    grow(base, plan, tmp_path / "grown")
    grown = read_header(tmp_path / "grown" / "model.safetensors")
    for number, (source, new) in enumerate(plan.layout()):
        for inner in ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight"):
            copied = b"".join(grown[f"model.layers.{number}.{inner}"].chunks())
            assert copied == b"".join(base.tensors[f"model.layers.{source}.{inner}"].chunks())
        for inner in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            assert any(b"".join(grown[f"model.layers.{number}.{inner}"].chunks())) == (not new)


def test_a_sharded_base_grows_into_the_same_model(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_base, local_files_only=True)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for name, folder in (("one", tiny_base), ("many", tmp_path / "sharded")):
        base, plan = opened(folder)
        grow(base, plan, tmp_path / name)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "many/model.safetensors").read_bytes()


def test_lists_of_one_entry_a_block_grow_with_the_blocks(tiny_base: Path) -> None:
    base, plan = opened(tiny_base)
    base.config["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    config = grown_config(base, plan)
    assert config["num_hidden_layers"] == 5
    assert config["layer_types"] == [
        "full_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
        "full_attention",
    ]
    assert base.config["num_hidden_layers"] == 3
