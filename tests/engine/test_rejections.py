"""Input that no retry can mend ends in one outcome with a code and a sentence, and leaves nothing half-written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from fusion_core.job_spec import Hyperparams
from fusion_core.problems import PROBLEMS
from fusion_core.trainer_protocol import EventReader, Rejected
from fusion_engine.run import execute
from transformers import LlamaModel

MakeRun = Callable[..., Path]


def rejected(run_dir: Path) -> Rejected:
    execute(run_dir)
    outcome = [event for _, event in EventReader(run_dir).read()][-1]
    assert isinstance(outcome, Rejected)
    assert outcome.code in PROBLEMS
    assert outcome.message
    assert not (run_dir / "export").exists()
    return outcome


def write_index(base: Path, *shards: str) -> None:
    """Make a sharded folder of a single-file one: the first shard is the whole file."""
    names = json.loads((base / "model.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    (base / "model.safetensors").rename(base / shards[0])
    weight_map = {name: shards[number % len(shards)] for number, name in enumerate(names)}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_missing_shard_is_named(make_run: MakeRun, copy_base: Path) -> None:
    run_dir = make_run("run", base=copy_base)
    write_index(copy_base, "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors")
    outcome = rejected(run_dir)
    assert outcome.code == "base_model_incomplete"
    assert outcome.errors == ({"file": "model-00002-of-00003.safetensors", "detail": "the file is missing"},)


def test_an_index_cannot_point_outside_the_folder(make_run: MakeRun, copy_base: Path) -> None:
    run_dir = make_run("run", base=copy_base)
    write_index(copy_base, "model-00001-of-00002.safetensors", "../secret.safetensors")
    assert rejected(run_dir).code == "base_model_corrupt"


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.9999])
def test_a_truncated_file_is_damaged(make_run: MakeRun, copy_base: Path, keep: float) -> None:
    weights = copy_base / "model.safetensors"
    content = weights.read_bytes()
    run_dir = make_run("run", base=copy_base)
    weights.write_bytes(content[: int(len(content) * keep)])
    assert rejected(run_dir).code == "base_model_corrupt"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("model.safetensors", None, "base_model_incomplete"),
        ("config.json", None, "base_model_incomplete"),
        ("config.json", "{", "base_model_corrupt"),
        ("config.json", "[]", "base_model_corrupt"),
        ("config.json", '{"architectures": ["LlamaForCausalLM"]}', "base_model_corrupt"),
        ("config.json", '{"architectures": ["MysteryForCausalLM"]}', "unsupported_architecture"),
        ("tokenizer.json", None, "base_model_incomplete"),
    ],
)
def test_a_missing_or_wrong_file(make_run: MakeRun, copy_base: Path, name: str, content: str | None, code: str) -> None:
    run_dir = make_run("run", base=copy_base)
    if content is None:
        (copy_base / name).unlink()
    else:
        (copy_base / name).write_text(content)
    assert rejected(run_dir).code == code


def test_a_folder_that_is_not_there(make_run: MakeRun, tmp_path: Path) -> None:
    assert rejected(make_run("run", base_dir=str(tmp_path / "nowhere"))).code == "base_model_incomplete"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"intermediate_size": 48}, "base_model_corrupt"),
        ({"num_hidden_layers": 4}, "base_model_incomplete"),
        ({"vocab_size": 16}, "base_model_corrupt"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(
    make_run: MakeRun, copy_base: Path, change: dict[str, Any], code: str
) -> None:
    config = json.loads((copy_base / "config.json").read_text())
    (copy_base / "config.json").write_text(json.dumps(config | change))
    assert rejected(make_run("run", base=copy_base)).code == code


def test_a_plan_made_for_another_base(make_run: MakeRun, base_maker: Callable[..., Path]) -> None:
    other = base_maker(num_hidden_layers=2)
    outcome = rejected(make_run("run", base_dir=str(other)))
    assert outcome.code == "base_model_corrupt"
    assert "growth plan" in outcome.message


def test_too_little_data(make_run: MakeRun) -> None:
    for name, shard in (("no train", "train.jsonl"), ("no heldout", "heldout.jsonl")):
        run_dir = make_run(name)
        (run_dir / shard).write_text('{"text": ""}\n')
        assert rejected(run_dir).code == "dataset_too_short"


@pytest.mark.parametrize("hyperparams", [Hyperparams(seq_len=4096), Hyperparams(growth_factor=1.0, seq_len=16)])
def test_a_request_that_nobody_can_train(make_run: MakeRun, hyperparams: Hyperparams) -> None:
    assert rejected(make_run("run", hyperparams=hyperparams)).code == "validation_failed"


def test_three_steps_without_a_finite_loss(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaModel.forward

    def broken(self: LlamaModel, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if self.training:
            output.last_hidden_state = output.last_hidden_state * torch.nan
        return output

    monkeypatch.setattr(LlamaModel, "forward", broken)
    outcome = rejected(make_run("run"))
    assert outcome.code == "nonfinite_loss"
    assert "around step 3" in outcome.message


def test_a_micro_batch_that_the_processes_cannot_share(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other attempt could share it either, so it is an answer and no crash."""
    monkeypatch.setattr("fusion_engine.run.start_accelerator", lambda *_: Accelerator(cpu=True))
    outcome = rejected(make_run("run", hyperparams=Hyperparams(batch_size=3), num_processes=2))
    assert outcome.code == "validation_failed"
    assert "batch_size 3 cannot be shared by 2 processes" in outcome.message
