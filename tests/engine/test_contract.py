"""Whole contractions: what the emitted model is, that healing helps, and that stops and kills change no byte."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_ranks import Ranks
from engine_runs import exported, killed_at, last_checkpoint, of_type, outcome, request_stop_at
from fusion_core.contraction_plan import plan_contraction
from fusion_core.job_spec import ContractHyperparams
from fusion_core.model_shapes import shape_of
from fusion_core.trainer_protocol import ContractRun, write_control, write_run
from fusion_engine.base_folder import load_model, open_base
from fusion_engine.families import FAMILIES
from fusion_engine.files import build_manifest
from fusion_engine.run import execute
from fusion_engine.safetensors_stream import read_header
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

HEALING = ContractHyperparams(contraction_ratio=0.5, train_steps=8, lr=1e-2, seq_len=16, batch_size=4)
MakeContraction = Callable[..., Path]


@pytest.fixture
def contraction(tiny_base: Path, tmp_path: Path) -> MakeContraction:
    """contraction(name, base=..., hyperparams=..., **fields of ContractRun) -> a run directory, run.json written."""

    def make(name: str, *, base: Path = tiny_base, hyperparams: ContractHyperparams = HEALING, **fields: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((base / "config.json").read_text())
        plan = plan_contraction(config, hyperparams.contraction_ratio, hyperparams.num_layers_to_contract)
        spec = {
            "job_id": "0190",
            "lease_epoch": 1,
            "hyperparams": hyperparams,
            "contraction_plan": plan,
            "base_dir": str(base),
            "checkpoint_every_s": 0.0,
            "metrics_every_s": 0.0,
        }
        write_run(folder, ContractRun(**(spec | fields)))
        return folder

    return make


@pytest.fixture
def undisturbed(contraction: MakeContraction) -> Path:
    run_dir = contraction("undisturbed")
    execute(run_dir)
    return run_dir


def test_a_contraction_without_a_dataset_prunes_heals_and_says_what_it_did(undisturbed: Path, tiny_base: Path) -> None:
    result = outcome(undisturbed).result
    plan = plan_contraction(json.loads((tiny_base / "config.json").read_text()), 0.5)
    assert (result["params_before"], result["params_after"]) == (plan.params_before, plan.params_after)
    assert result["requested_shrinkage"] == plan.requested_shrinkage
    assert result["achieved_shrinkage"] == plan.achieved_shrinkage
    assert result["perplexity"].keys() == {"source", "pruned", "healed"}
    assert result["perplexity_before"] == result["perplexity"]["source"]
    assert result["perplexity_after"] == result["perplexity"]["healed"]
    assert result["layers"] == [0, 1, 2], "three layers, all of them by default"
    assert len(result["layer_damage"]) == 3
    assert min(result["layer_damage"]) > 0.0
    assert "function_preservation" not in result
    assert [event.phase for event in of_type(undisturbed, "PhaseChanged") if not event.message] == [
        "preparing",
        "diagnosing",
        "exporting",
    ]
    assert of_type(undisturbed, "ExportSaved")[0].params == plan.params_after


def test_plain_transformers_loads_the_export(undisturbed: Path, tiny_base: Path) -> None:
    export = undisturbed / "export"
    model = AutoModelForCausalLM.from_pretrained(export, local_files_only=True)
    assert model.config.intermediate_size == 32
    assert "contracted from 64 to 32 FFN channels" in (export / "README.md").read_text()
    assert model.num_parameters() == outcome(undisturbed).result["params_after"]
    assert of_type(undisturbed, "ExportSaved")[0].manifest == build_manifest(export)
    tokenizer = AutoTokenizer.from_pretrained(export, local_files_only=True)
    prompt = tokenizer("the model", return_tensors="pt")
    assert model.generate(input_ids=prompt["input_ids"], max_new_tokens=4, do_sample=False).shape[0] == 1
    before, after = (read_header(folder / "model.safetensors") for folder in (tiny_base, export))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if ".mlp." not in name:
            assert list(after[name].chunks()) == list(tensor.chunks()), f"{name} is no part of an FFN"


@pytest.fixture(scope="module")
def trained_base(base_maker: Callable[..., Path]) -> Path:
    """A base that has learned to count in steps of 1 or 3, so that there is something to lose and to mend."""
    folder = base_maker()
    model = load_model(folder, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = np.random.default_rng(0)
    for _ in range(150):
        starts, steps = generator.integers(20, size=(8, 1)), generator.choice([1, 3], size=(8, 1))
        counted = 2 + (starts + steps * np.arange(16)) % 20
        batch = torch.from_numpy(np.pad(counted, ((0, 0), (1, 0)), constant_values=1))
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def test_healing_wins_back_what_pruning_lost(contraction: MakeContraction, trained_base: Path) -> None:
    settings = ContractHyperparams(contraction_ratio=0.9, train_steps=60, lr=1e-2, seq_len=16, batch_size=8)
    run_dir = contraction("healed", base=trained_base, hyperparams=settings)
    execute(run_dir)
    found = outcome(run_dir).result["perplexity"]
    lost, left = found["pruned"] - found["source"], found["healed"] - found["source"]
    assert lost > 0.1 * found["source"]
    assert left < 0.5 * lost
    losses = [event.loss for event in of_type(run_dir, "Metrics")]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_dataset_is_what_is_healed_and_measured_on(
    contraction: MakeContraction, make_run: Callable[..., Path]
) -> None:
    data = make_run("data")
    shards = {"train_shards": (str(data / "train.jsonl"),), "heldout_shards": (str(data / "heldout.jsonl"),)}
    run_dir = contraction("with dataset", **shards)
    execute(run_dir)
    documents = len((data / "heldout.jsonl").read_text().splitlines())
    ids = (run_dir / "tokens" / "heldout.ids").stat().st_size // 4
    assert {event.tokens for event in of_type(run_dir, "Evaluation")} == {ids - documents}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_contracts_to_the_planned_size_and_loads_in_plain_transformers(
    contraction: MakeContraction, family_maker: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    base = tmp_path / "source"
    family_maker("gemma3_text" if name == "gemma3" else name).save_pretrained(base)
    words = Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1, "the": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(base)
    settings = ContractHyperparams(train_steps=2, seq_len=8, lr=1e-3, batch_size=2)
    run_dir = contraction(name, base=base, hyperparams=settings)
    execute(run_dir)
    result = outcome(run_dir).result
    export = open_base(run_dir / "export")
    model, loading = AutoModelForCausalLM.from_pretrained(export.path, local_files_only=True, output_loading_info=True)
    assert not any(loading.values()), "every tensor is there, none is left over"
    stored = sum(math.prod(tensor.shape) for tensor in export.tensors.values())
    assert result["params_after"] == model.num_parameters() == stored == shape_of(export.config).params
    changed = {key: value for key, value in export.config.items() if value != open_base(base).config[key]}
    assert changed == {"intermediate_size": result["contraction_plan"]["ffn_after"]}
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()


def test_without_healing_steps_the_pruned_model_is_exported(contraction: MakeContraction) -> None:
    settings = ContractHyperparams(train_steps=0, seq_len=16, importance="wanda", num_layers_to_contract=1)
    run_dir = contraction("pruned", hyperparams=settings)
    execute(run_dir)
    result = outcome(run_dir).result
    assert result["perplexity"]["healed"] == result["perplexity"]["pruned"]
    assert len(result["layers"]) == 1
    assert result["layers"] != [0], "the first layer comes last"
    assert not of_type(run_dir, "CheckpointSaved")
    open_base(run_dir / "export")


def test_the_source_is_untouched_and_the_export_knows_no_job(
    contraction: MakeContraction, undisturbed: Path, tiny_base: Path
) -> None:
    before = build_manifest(tiny_base)
    other = contraction("other", job_id="another job", lease_epoch=7, checkpoint_every_s=3600.0)
    execute(other)
    assert build_manifest(tiny_base) == before
    assert exported(other) == exported(undisturbed)


@pytest.mark.parametrize("stop_at", [3, 8])
def test_stopping_and_resuming_gives_the_same_bytes(
    contraction: MakeContraction, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    first = contraction("first", checkpoint_every_s=3600.0)
    request_stop_at(first, stop_at, "drain", monkeypatch)
    execute(first)
    assert (outcome(first).step, outcome(first).reason) == (stop_at, "drain")
    monkeypatch.undo()
    second = contraction("second", checkpoint_dir=last_checkpoint(first))
    execute(second)
    assert exported(second) == exported(undisturbed)
    assert outcome(second).result == outcome(undisturbed).result


@pytest.mark.parametrize("failpoint", ["step:1", "step:5", "checkpoint_file.before:3", "export.before", "export.after"])
def test_kill_9_and_resume_gives_the_same_bytes(
    contraction: MakeContraction, undisturbed: Path, failpoint: str
) -> None:
    killed = contraction("killed")
    killed_at(failpoint, killed)
    resumed = contraction("resumed", checkpoint_dir=last_checkpoint(killed))
    execute(resumed)
    assert exported(resumed) == exported(undisturbed)
    assert outcome(resumed).result == outcome(undisturbed).result


def test_two_processes_heal_one_model_and_resume_to_the_same_bytes(contraction: MakeContraction, ranks: Ranks) -> None:
    whole, killed = (contraction(name, num_processes=2) for name in ("whole", "killed"))
    finished = ranks.attempt(whole)
    assert finished.returncode == 0, finished.stderr
    assert outcome(whole).result["reproducibility"]["world_size"] == 2
    assert ranks.attempt(killed, FUSION_FAILPOINT="step:6").returncode != 0
    resumed = contraction("resumed", num_processes=2, checkpoint_dir=last_checkpoint(killed))
    finished = ranks.attempt(resumed)
    assert finished.returncode == 0, finished.stderr
    assert exported(resumed) == exported(whole)
    assert outcome(resumed).result == outcome(whole).result


def test_a_cancelled_contraction_does_nothing_more(contraction: MakeContraction) -> None:
    run_dir = contraction("cancelled")
    write_control(run_dir, "cancel")
    execute(run_dir)
    assert (outcome(run_dir).reason, outcome(run_dir).step) == ("cancel", 0)
    assert not (run_dir / "contracted").exists()


def test_a_pool_that_comes_with_the_job_is_used(contraction: MakeContraction, tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    drawn = [[1, *(2 + (i * 5 + j) % 20 for j in range(15))] for i in range(24)]
    pool.write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in drawn))
    run_dir = contraction("with pool", pool_files=(str(pool),))
    execute(run_dir)
    assert not (run_dir / "pool").exists()
    assert outcome(run_dir).result["params_after"] < outcome(run_dir).result["params_before"]


@pytest.mark.parametrize(
    ("settings", "fields", "code", "message"),
    [
        ({"seq_len": 4096}, {}, "validation_failed", "use 128"),
        ({}, {"base_dir": "/nowhere"}, "base_model_incomplete", "no such folder"),
    ],
)
def test_what_cannot_be_contracted_is_rejected(
    contraction: MakeContraction, settings: dict[str, Any], fields: dict[str, Any], code: str, message: str
) -> None:
    run_dir = contraction("rejected", hyperparams=ContractHyperparams(**({"seq_len": 16} | settings)), **fields)
    execute(run_dir)
    assert outcome(run_dir).code == code
    assert message in outcome(run_dir).message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_source_with_weights_that_are_no_numbers_is_rejected(
    contraction: MakeContraction, copy_base: Path, value: float
) -> None:
    weights = load_file(copy_base / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][3, 2] = value
    save_file(weights, copy_base / "model.safetensors", metadata={"format": "pt"})
    run_dir = contraction("not finite", base=copy_base)
    execute(run_dir)
    assert outcome(run_dir).code == "base_model_corrupt"
    assert "model.layers.1.self_attn.q_proj.weight" in outcome(run_dir).message


def test_a_plan_for_another_source_is_rejected(contraction: MakeContraction, base_maker: Callable[..., Path]) -> None:
    run_dir = contraction("other source", base_dir=str(base_maker(intermediate_size=72)))
    execute(run_dir)
    assert outcome(run_dir).code == "base_model_corrupt"
    assert "the contraction plan was made for" in outcome(run_dir).message


def test_a_dataset_without_one_whole_row_is_rejected(contraction: MakeContraction, tmp_path: Path) -> None:
    shard = tmp_path / "short.jsonl"
    shard.write_text('{"text": "the model"}\n')
    run_dir = contraction("short", train_shards=(str(shard),), heldout_shards=(str(shard),))
    execute(run_dir)
    assert outcome(run_dir).code == "dataset_too_short"
    assert "leave it out" in outcome(run_dir).message


def test_a_bf16_source_gives_a_bf16_export(contraction: MakeContraction, base_maker: Callable[..., Path]) -> None:
    run_dir = contraction("bf16", base=base_maker(dtype="bfloat16"))
    execute(run_dir)
    assert {tensor.dtype for tensor in read_header(run_dir / "export" / "model.safetensors").values()} == {"BF16"}
    model = AutoModelForCausalLM.from_pretrained(run_dir / "export", local_files_only=True)
    assert model.dtype == torch.bfloat16
