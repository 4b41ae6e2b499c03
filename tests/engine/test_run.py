"""Whole attempts: training helps, stopping, killing and saving change no byte, a full disk is told apart."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_runs import MakeRun, exported, killed_at, last_checkpoint, of_type, outcome, request_stop_at
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import write_control
from fusion_engine.checkpoint import STATE_FILE, TRAINED_FILE, CheckpointError
from fusion_engine.files import build_manifest
from fusion_engine.run import execute
from fusion_engine.safetensors_stream import MemoryTensor, read_header, write_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def undisturbed(make_run: MakeRun) -> Path:
    run_dir = make_run("undisturbed")
    execute(run_dir)
    return run_dir


def test_a_run_grows_trains_evaluates_each_turn_and_exports(undisturbed: Path) -> None:
    result = outcome(undisturbed).result
    assert result["function_preservation"] == 0.0
    measured = of_type(undisturbed, "Evaluation")
    assert [(event.step, event.turn, event.cycle) for event in measured] == [
        (0, 0, 0),
        (4, 1, 1),
        (8, 1, 2),
        (12, 2, 3),
        (16, 2, 4),
    ]
    assert [event.step for event in measured if event.turn_end] == [0, 8, 16]
    assert result["perplexity"]["base"] > result["perplexity"]["turn_1"] > result["perplexity"]["turn_2"]
    assert (result["perplexity_before"], result["perplexity_after"]) == (
        result["perplexity"]["base"],
        result["perplexity"]["turn_2"],
    )
    assert result["tokens"] == 16 * 16 * 4
    assert [event.phase for event in of_type(undisturbed, "PhaseChanged")] == [
        "preparing",
        "diagnosing",
        "growing",
        "training",
        "exporting",
    ]
    assert [event.step for event in of_type(undisturbed, "Metrics")] == list(range(1, 17))
    assert [event.cycle for event in of_type(undisturbed, "Metrics")] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert [event.step for event in of_type(undisturbed, "CheckpointSaved") if event.turn_end] == [8, 16]


def test_plain_transformers_loads_the_export_and_generates(undisturbed: Path) -> None:
    export = undisturbed / "export"
    model = AutoModelForCausalLM.from_pretrained(export, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(export, local_files_only=True)
    assert model.num_parameters() == of_type(undisturbed, "ExportSaved")[0].params
    assert of_type(undisturbed, "ExportSaved")[0].manifest == build_manifest(export)
    prompt = tokenizer("the model", return_tensors="pt")
    text = model.generate(input_ids=prompt["input_ids"], max_new_tokens=4, do_sample=False)
    assert text.shape[1] > prompt["input_ids"].shape[1]


def test_the_new_blocks_learn_and_the_base_in_the_export_is_the_base_byte_for_byte(
    undisturbed: Path, tiny_base: Path
) -> None:
    base, export = (read_header(folder / "model.safetensors") for folder in (tiny_base, undisturbed / "export"))
    plan = outcome(undisturbed).result["growth_plan"]
    assert (plan["new_after"], plan["own_head"]) == ([1], True)
    old_to_new = {0: 0, 1: 1, 2: 3}  # the new block is 2
    for name, tensor in base.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(old_to_new[int(parts[2])])
        assert list(export[".".join(parts)].chunks()) == list(tensor.chunks()), name
    written = b"".join(export["model.layers.2.mlp.down_proj.weight"].chunks())
    assert any(written), "a zeroed projection that trained is no longer zero"


def test_a_bf16_base_gives_a_bf16_export_and_resumes_exactly(
    make_run: MakeRun, base_maker: Callable[..., Path]
) -> None:
    base = base_maker(dtype="bfloat16")
    whole = make_run("whole", base=base)
    execute(whole)
    assert {tensor.dtype for tensor in read_header(whole / "export" / "model.safetensors").values()} == {"BF16"}
    checkpoints = of_type(whole, "CheckpointSaved")
    assert {tensor.dtype for tensor in load_file(Path(checkpoints[4].path) / TRAINED_FILE).values()} == {torch.float32}
    resumed = make_run("from step 5", base=base, checkpoint_dir=checkpoints[4].path)
    execute(resumed)
    assert exported(resumed) == exported(whole)


def test_the_base_is_untouched_and_the_export_knows_no_job(make_run: MakeRun, tiny_base: Path) -> None:
    before = build_manifest(tiny_base)
    first, second = make_run("first"), make_run("second", job_id="another job", lease_epoch=7)
    execute(first)
    execute(second)
    assert build_manifest(tiny_base) == before
    assert exported(first) == exported(second)
    other = make_run("third", hyperparams=Hyperparams(turns=2, cycles=2, steps_per_cycle=4, seq_len=16, seed=5))
    execute(other)
    assert exported(other)["model.safetensors"] != exported(first)["model.safetensors"]


def test_when_checkpoints_happen_changes_nothing(make_run: MakeRun, undisturbed: Path) -> None:
    rarely = make_run("rarely", checkpoint_every_s=3600.0, metrics_every_s=3600.0)
    execute(rarely)
    assert [event.step for event in of_type(rarely, "CheckpointSaved")] == [8, 16]
    assert len(of_type(undisturbed, "CheckpointSaved")) == 16
    assert [event.step for event in of_type(rarely, "Metrics")] == [8, 16], "a turn's last step is always reported"
    assert exported(rarely) == exported(undisturbed)


def test_dropout_draws_the_same_numbers_after_a_resume(
    make_run: MakeRun, base_maker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random states matter only where something draws: here attention dropout does."""
    base = base_maker(attention_dropout=0.2)
    whole, first = make_run("whole", base=base), make_run("first", base=base)
    execute(whole)
    request_stop_at(first, 3, "drain", monkeypatch)
    execute(first)
    monkeypatch.undo()
    second = make_run("second", base=base, checkpoint_dir=last_checkpoint(first))
    execute(second)
    assert exported(second) == exported(whole)
    state = Path(str(last_checkpoint(first))) / STATE_FILE
    content = json.loads(state.read_bytes())
    content["random_states"][0]["torch"] = torch.Generator().manual_seed(1).get_state().numpy().tobytes().hex()
    state.write_text(json.dumps(content))
    other = make_run("other", base=base, checkpoint_dir=str(state.parent))
    execute(other)
    assert exported(other) != exported(whole), "the test would not notice a lost random state"


@pytest.mark.parametrize("stop_at", [3, 8, 15])
def test_stopping_and_resuming_gives_the_same_bytes(
    make_run: MakeRun, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    first = make_run("first", checkpoint_every_s=3600.0)
    request_stop_at(first, stop_at, "drain", monkeypatch)
    execute(first)
    assert (outcome(first).step, outcome(first).reason) == (stop_at, "drain")
    monkeypatch.undo()
    second = make_run("second", checkpoint_dir=last_checkpoint(first))
    execute(second)
    assert exported(second) == exported(undisturbed)
    assert outcome(second).result == outcome(undisturbed).result
    assert not of_type(second, "Grown")
    steps = [event.step for event in (*of_type(first, "Evaluation"), *of_type(second, "Evaluation"))]
    assert steps == [0, 4, 8, 12, 16], "an evaluation inside the checkpoint is not reported again"


@pytest.mark.parametrize(
    "failpoint",
    [
        "growth.before",
        "growth.after",
        "step:1",
        "step:7",
        "step:8",
        "checkpoint_file.before:5",
        "checkpoint_file.after:9",
        "export.before",
        "export.after",
    ],
)
def test_kill_9_and_resume_gives_the_same_bytes(make_run: MakeRun, undisturbed: Path, failpoint: str) -> None:
    killed = make_run("killed")
    killed_at(failpoint, killed)
    resumed = make_run("resumed", checkpoint_dir=last_checkpoint(killed))
    execute(resumed)
    assert exported(resumed) == exported(undisturbed)


def test_a_cancelled_job_saves_nothing_more(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = make_run("at once")
    write_control(at_once, "cancel")
    execute(at_once)
    assert (outcome(at_once).reason, outcome(at_once).step) == ("cancel", 0)
    assert not of_type(at_once, "Grown")
    training = make_run("training", checkpoint_every_s=3600.0)
    request_stop_at(training, 3, "cancel", monkeypatch)
    execute(training)
    assert (outcome(training).reason, outcome(training).step) == ("cancel", 3)
    assert last_checkpoint(training) is None


def test_a_checkpoint_that_does_not_fit_is_refused(make_run: MakeRun, undisturbed: Path) -> None:
    path = Path(str(last_checkpoint(undisturbed)))
    other = Hyperparams(turns=1, steps_per_cycle=2, seq_len=16, growth_factor=1.9)
    with pytest.raises(CheckpointError, match="another job"):
        execute(make_run("other", hyperparams=other, checkpoint_dir=str(path)))
    views = load_file(path / TRAINED_FILE)  # of the file that is about to be replaced
    trained = {name: tensor.clone() for name, tensor in views.items()}
    lost = trained.popitem()[0]
    write_file(path / TRAINED_FILE, {name: MemoryTensor.of(tensor) for name, tensor in trained.items()})
    with pytest.raises(CheckpointError, match=lost):
        execute(make_run("lacking", checkpoint_dir=str(path)))


def test_under_accelerate_with_a_full_disk_then_again(make_run: MakeRun, undisturbed: Path) -> None:
    """The real command in a fresh interpreter: the same bytes, and ENOSPC is told apart from other crashes."""
    run_dir = make_run("launched")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", "-m", "fusion_engine", str(run_dir)]
    environment = os.environ | {"FUSION_FAILPOINT": "checkpoint_file.before:2=enospc", "OMP_NUM_THREADS": "1"}
    full = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert full.returncode != 0
    assert "\nfusion_engine: disk_full: " in f"\n{full.stderr}"
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["00000001"], "no half-written checkpoint"
    again = make_run("again", checkpoint_dir=last_checkpoint(run_dir))
    launch[-1] = str(again)
    del environment["FUSION_FAILPOINT"]
    subprocess.run(launch, env=environment, capture_output=True, timeout=200, check=True)
    assert exported(again) == exported(undisturbed)
