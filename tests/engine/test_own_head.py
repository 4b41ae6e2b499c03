"""A head of its own for a model whose head was tied: it learns, the embedding stays, and work on the model goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import HYPERPARAMS, MakeRun, exported, killed_at, last_checkpoint, of_type, outcome
from fusion_core.contraction_plan import plan_contraction
from fusion_core.job_spec import ContractHyperparams
from fusion_core.trainer_protocol import ContractRun, write_run
from fusion_engine.base_folder import load_model
from fusion_engine.run import execute
from msgspec.structs import replace
from safetensors.torch import load_file

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SETTINGS = replace(HYPERPARAMS, own_head=True, growth_factor=2.0)


@pytest.mark.parametrize("scope", ["new", "all"])
def test_a_job_trains_the_head_leaves_the_embedding_and_resumes_exactly(
    make_run: MakeRun, tiny_base: Path, pool: str, scope: Any
) -> None:
    settings = replace(SETTINGS, train_scope=scope, old_lr_scale=0.0)
    fields: dict[str, Any] = {"hyperparams": settings, "pool_files": (pool,)}
    whole, killed = make_run("whole", **fields), make_run("killed", **fields)
    execute(whole)
    weights, base = load_file(whole / "export" / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert torch.equal(weights[EMBEDDING], base[EMBEDDING])
    assert not torch.equal(weights[HEAD], base[EMBEDDING])
    result = outcome(whole).result
    model = load_model(whole / "export")
    assert sum(parameter.numel() for parameter in model.parameters()) == result["params_after"]
    assert (result["function_preservation"], model.config.tie_word_embeddings) == (0.0, False)
    assert "with an output head of its own" in (whole / "export" / "README.md").read_text()
    killed_at("step:7", killed)
    resumed = make_run("resumed", checkpoint_dir=last_checkpoint(killed), **fields)
    execute(resumed)
    assert exported(resumed) == exported(whole)


def test_a_checkpoint_holds_the_head_and_the_new_blocks_alone(make_run: MakeRun) -> None:
    run_dir = make_run("run", hyperparams=SETTINGS)
    execute(run_dir)
    plan = outcome(run_dir).result["growth_plan"]
    saved = load_file(Path(of_type(run_dir, "CheckpointSaved")[-1].path) / "trained.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == plan["params_after"] - plan["params_before"]


def test_what_was_given_a_head_can_be_grown_and_contracted_further(make_run: MakeRun, tmp_path: Path) -> None:
    first = make_run("first", hyperparams=SETTINGS)
    execute(first)
    made = first / "export"
    again = make_run("again", base=made, hyperparams=SETTINGS)
    execute(again)
    result = outcome(again).result
    assert (result["function_preservation"], result["growth_plan"]["own_head"]) == (0.0, False)
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    settings = ContractHyperparams(train_steps=2, seq_len=16, batch_size=4)
    plan = plan_contraction(json.loads((made / "config.json").read_text()), settings.contraction_ratio, None)
    write_run(
        smaller,
        ContractRun(job_id="0190", lease_epoch=1, hyperparams=settings, contraction_plan=plan, base_dir=str(made)),
    )
    execute(smaller)
    model, head = load_model(smaller / "export"), load_file(made / "model.safetensors")[HEAD]
    assert model.num_parameters() == plan.params_after
    assert torch.equal(model.get_output_embeddings().weight, head)
