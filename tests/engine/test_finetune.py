"""Fine-tuning from run.json to plain safetensors: adapters learn, are merged, and resume to the same bytes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from engine_runs import MakeRun, exported, killed_at, last_checkpoint, of_type, outcome
from fusion_core.job_spec import FinetuneHyperparams
from fusion_core.trainer_protocol import EngineRun, FinetuneRun, read_run, write_run
from fusion_engine.base_folder import load_model, open_base
from fusion_engine.checkpoint import OPTIMIZER_FILE, TRAINED_FILE
from fusion_engine.lora import attach_adapters, merged_tensors
from fusion_engine.run import execute
from fusion_engine.safetensors_stream import read_header, write_model
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SETTINGS = FinetuneHyperparams(lora_rank=4, steps=12, lr=1e-2, seq_len=16, batch_size=4)


@pytest.fixture
def make_finetune(make_run: MakeRun) -> MakeRun:
    def make(name: str, hyperparams: FinetuneHyperparams = SETTINGS, **fields: Any) -> Path:
        run_dir = make_run(name, **fields)
        run = read_run(run_dir)
        assert isinstance(run, EngineRun)
        shared = {field: getattr(run, field) for field in EngineRun.__struct_fields__}
        write_run(run_dir, FinetuneRun(hyperparams=hyperparams, **shared))
        return run_dir

    return make


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one precision a process; this test needs another than its neighbours."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_a_finetune_learns_and_exports_the_base_with_its_adapters_merged(
    make_finetune: MakeRun, tiny_base: Path
) -> None:
    run_dir = make_finetune("whole")
    execute(run_dir)
    result = outcome(run_dir).result
    assert result["perplexity_after"] < 0.7 * result["perplexity_before"]
    assert result["params_before"] == result["params_after"] == of_type(run_dir, "ExportSaved")[0].params
    assert all((run_dir / "export" / name).is_file() for name in result["training_curve"].values())
    assert (result["lora_rank"], result["tokens"]) == (4, 12 * 4 * 16)
    files = {file.rel for file in of_type(run_dir, "ExportSaved")[0].manifest.files}
    assert set(result["training_curve"].values()) <= files
    base, found = (load_file(folder / "model.safetensors") for folder in (tiny_base, run_dir / "export"))
    assert base.keys() == found.keys(), "no adapter is left in the export"
    changed = {name for name in base if not torch.equal(base[name], found[name])}
    assert changed == {name for name in base if "_proj" in name}
    assert AutoModelForCausalLM.from_pretrained(run_dir / "export", local_files_only=True).num_parameters() > 0


def test_the_merged_model_computes_what_the_adapted_one_computed(tiny_base: Path, tmp_path: Path) -> None:
    base = open_base(tiny_base)
    adapted = load_model(base.path)
    parameters, adapters = attach_adapters(adapted, base, rank=4)
    assert all(".lora_" in name for name in parameters)
    ids = torch.arange(12)[None]
    untouched = load_model(base.path)(input_ids=ids).logits
    assert torch.equal(adapted(input_ids=ids).logits, untouched), "at first adapters add nothing"
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter.data, std=0.1)
    write_model(tmp_path, merged_tensors(base, adapters))
    (tmp_path / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    merged = load_model(tmp_path)(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged, untouched, atol=1e-2)


def test_a_checkpoint_holds_the_adapters_and_nothing_of_the_base(make_finetune: MakeRun) -> None:
    run_dir = make_finetune("whole")
    execute(run_dir)
    folder = Path(str(last_checkpoint(run_dir)))
    assert all(".lora_" in name for name in load_file(folder / TRAINED_FILE))
    assert all(".lora_" in name for name in load_file(folder / OPTIMIZER_FILE))


@pytest.mark.parametrize("failpoint", ["step:1", "step:7", "checkpoint_file.before:5", "export.before"])
def test_kill_9_and_resume_gives_the_same_bytes(make_finetune: MakeRun, failpoint: str) -> None:
    whole, killed = make_finetune("whole"), make_finetune("killed")
    execute(whole)
    killed_at(failpoint, killed)
    resumed = make_finetune("resumed", checkpoint_dir=last_checkpoint(killed))
    execute(resumed)
    assert exported(resumed) == exported(whole)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_bf16_base_is_frozen_in_bf16_and_rounded_once(
    make_finetune: MakeRun, base_maker: Callable[..., Path]
) -> None:
    run_dir = make_finetune("bf16", replace(SETTINGS, precision="bf16"), base=base_maker(dtype="bfloat16"))
    execute(run_dir)
    assert outcome(run_dir).result["perplexity_after"] < outcome(run_dir).result["perplexity_before"]
    assert {tensor.dtype for tensor in read_header(run_dir / "export" / "model.safetensors").values()} == {"BF16"}
    trained = load_file(Path(str(last_checkpoint(run_dir))) / TRAINED_FILE)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}


def test_other_families_can_be_fine_tuned(family_maker: Callable[..., Any], tmp_path: Path) -> None:
    for family in ("qwen3", "falcon_h1"):
        folder = tmp_path / family
        family_maker(family).save_pretrained(folder)
        base = open_base(folder)
        model = load_model(folder)
        parameters, adapters = attach_adapters(model, base, rank=2)
        model(input_ids=torch.arange(9)[None]).logits.square().mean().backward()
        assert all(parameter.grad is not None for parameter in parameters.values())
        assert adapters.keys() <= base.tensors.keys()


def test_a_base_with_weights_that_are_no_numbers_is_refused(make_finetune: MakeRun, copy_base: Path) -> None:
    weights = load_file(copy_base / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][3, 2] = float("nan")
    save_file(weights, copy_base / "model.safetensors", metadata={"format": "pt"})
    run_dir = make_finetune("run", base=copy_base)
    execute(run_dir)
    assert outcome(run_dir).code == "base_model_corrupt"
