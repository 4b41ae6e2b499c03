"""Jobs that grow in width: new channels learn as a branch of their own, and the export joins them to the old ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from engine_runs import HYPERPARAMS, exported, of_type, outcome
from fusion_core.growth_plan import GrowthPlan, plan_growth
from fusion_engine.base_folder import load_model, open_base
from fusion_engine.export import export
from fusion_engine.grow import grow
from fusion_engine.run import execute
from fusion_engine.trainable import load_grown
from msgspec.structs import replace as replaced
from safetensors.torch import load_file
from tiny_families import make_family_model
from transformers import AutoModelForCausalLM

MakeRun = Callable[..., Path]
WIDTH = replaced(HYPERPARAMS, growth_axis="width", turns=1)


def width_plan(base: Path) -> GrowthPlan:
    return plan_growth(json.loads((base / "config.json").read_text()), axis="width")


@pytest.fixture
def width_run(make_run: MakeRun, tiny_base: Path) -> MakeRun:
    return lambda name, **fields: make_run(
        name, **({"hyperparams": WIDTH, "growth_plan": width_plan(tiny_base)} | fields)
    )


def test_only_new_channels_learn_and_a_job_resumes_to_the_same_bytes(width_run: MakeRun, tiny_base: Path) -> None:
    whole = width_run("whole")
    execute(whole)
    result = outcome(whole).result
    assert result["function_preservation"] == 0.0
    assert result["perplexity_after"] < result["perplexity_before"]
    plan, before = width_plan(tiny_base), load_file(tiny_base / "model.safetensors")
    after = load_file(whole / "export" / "model.safetensors")
    for name, tensor in before.items():
        rows, columns = (slice(0, size) for size in (*tensor.shape, 1)[:2])
        old = after[name][rows] if tensor.ndim == 1 else after[name][rows, columns]
        assert torch.equal(old, tensor), name
    for layer in range(plan.layers_before):
        assert after[f"model.layers.{layer}.mlp.down_proj.weight"][:, plan.ffn_before :].any()
    model = AutoModelForCausalLM.from_pretrained(whole / "export", local_files_only=True)
    assert model.num_parameters() == plan.params_after
    assert "grown in width from 64 to " in (whole / "export" / "README.md").read_text()
    resumed = width_run("resumed", checkpoint_dir=of_type(whole, "CheckpointSaved")[2].path)
    execute(resumed)
    assert exported(resumed) == exported(whole)


def test_everything_learns_in_deep_mode(width_run: MakeRun, tiny_base: Path) -> None:
    run_dir = width_run("deep", hyperparams=replaced(WIDTH, train_scope="all"))
    execute(run_dir)
    plan, before = width_plan(tiny_base), load_file(tiny_base / "model.safetensors")
    after = load_file(run_dir / "export" / "model.safetensors")
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.gate_proj.weight"):
        assert after[name].shape == (plan.ffn_after, 32)
        assert not torch.equal(after[name][: plan.ffn_before], before[name])
    assert not torch.equal(
        after["model.layers.1.self_attn.q_proj.weight"], before["model.layers.1.self_attn.q_proj.weight"]
    )


@pytest.mark.parametrize("scope", ["new", "all"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "smollm3", "falcon_h1-gated"])
def test_the_export_computes_what_was_trained(tmp_path: Path, family: str, scope: Literal["new", "all"]) -> None:
    """With biases and multipliers; every parameter that learns is moved, as training would."""
    folder = make_family_model(tmp_path / "base", family)
    plan = width_plan(folder)
    base = open_base(folder, plan)
    grow(base, plan, tmp_path / "grown")
    grown = load_grown(tmp_path / "grown", plan, replaced(WIDTH, train_scope=scope), base.family, torch.float32)
    learned = sum(parameter.numel() for parameter in grown.parameters.values())
    assert learned == (plan.params_added if scope == "new" else plan.params_after)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in grown.parameters.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    export(base, plan, grown.parameters, tmp_path / "out")
    ids = torch.arange(2, 60)[None]
    with torch.no_grad():
        expected, found = (model.eval()(ids).logits for model in (grown.model, load_model(tmp_path / "out")))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
