"""`fusion-engine train`: from JSONL to a model folder, interrupted and repeated to the same bytes."""

import os
import signal
from pathlib import Path

import pytest
from conftest import rows, write_rows
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import EventWriter, TrainerEvent
from fusion_engine.checkpoint import latest_checkpoint
from fusion_engine.cli import main
from fusion_engine.commands.hyperparam_options import MEANINGS
from fusion_engine.files import build_manifest
from transformers import AutoModelForCausalLM

OPTIONS = ["--turns", "2", "--cycles", "2", "--steps-per-cycle", "4", "--lr", "0.01", "--seq-len", "16"]
OPTIONS += ["--batch-size", "4", "--pool-rows", "20", "--threads", "1", "--checkpoint-every", "0"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", rows(150))


def words(base: Path, data: str, destination: Path, *more: str) -> list[str]:
    return ["train", str(base), data, str(destination), *OPTIONS, *more]


def test_it_trains_and_leaves_nothing_but_the_model(
    tiny_base: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tiny_base, data, tmp_path / "ours")) == 0
    printed = capsys.readouterr()
    before, after = (float(word) for word in printed.out.splitlines()[0].split()[1:4:2])
    assert after < before
    assert "retention" in printed.out, "the pool was sampled, and a part of it measured"
    assert "step 8: held-out perplexity" in printed.err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours", local_files_only=True).config.num_hidden_layers == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "rows.jsonl"]
    assert main(words(tiny_base, data, tmp_path / "ours")) == 2
    assert "exists; name a folder that does not" in capsys.readouterr().err


def test_a_repeated_command_goes_on_after_kill_9(
    tiny_base: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole" / "ours", tmp_path / "killed" / "ours"  # a model's card names its folder
    whole.parent.mkdir()
    killed.parent.mkdir()
    assert main(words(tiny_base, data, whole)) == 0
    pid = os.fork()
    if pid == 0:
        try:
            os.environ["FUSION_FAILPOINT"] = "step:11"
            main(words(tiny_base, data, killed))
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    left = tmp_path / "killed" / "ours.run" / "checkpoints"
    newest = latest_checkpoint(left)
    assert newest is not None
    assert int(newest.name) >= 9
    (newest / "trained.safetensors").write_bytes(b"damaged since")
    capsys.readouterr()
    assert main(words(tiny_base, data, killed, "--seed", "1")) == 2, "with other settings it is another training"
    assert "other settings" in capsys.readouterr().err
    assert main(words(tiny_base, data, killed)) == 0
    assert "step 4:" not in capsys.readouterr().err, "it went on from the last whole checkpoint"
    assert build_manifest(killed) == build_manifest(whole)


def test_ctrl_c_saves_and_the_same_command_goes_on(
    tiny_base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    emit = EventWriter.emit

    def emit_and_interrupt(self: EventWriter, event: TrainerEvent) -> None:
        emit(self, event)
        if getattr(event, "step", None) == 8 and type(event).__name__ == "Metrics":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(EventWriter, "emit", emit_and_interrupt)
    assert main(words(tiny_base, data, tmp_path / "ours")) == 130
    assert "stopped after step 8; the same command goes on from there" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(words(tiny_base, data, tmp_path / "ours")) == 0
    assert "step 4:" not in capsys.readouterr().err, "what was measured is not measured again"
    assert (tmp_path / "ours" / "model.safetensors").exists()


def test_two_processes(tiny_base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(words(tiny_base, data, tmp_path / "ours", "--processes", "2")) == 0
    assert (tmp_path / "ours" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--growth-factor", "9"], "--growth-factor: Expected `float` <= 4.0 [validation_failed]"),
        (["--turns", "many"], "--turns: Expected `int`, got `str`"),
        (["--growth-factor", "1.0", "--train-scope", "new"], "--train-scope: "),
        (["--rehearsal", "nowhere.jsonl"], "there is no such file: nowhere.jsonl [inputs_unavailable]"),
    ],
)
def test_bad_options_are_named(
    tiny_base: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(words(tiny_base, data, tmp_path / "ours", "--pool-rows", "0", *more)) == 2
    assert message in capsys.readouterr().err


def test_every_bad_option_is_named(
    tiny_base: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of bounds both, and then both at odds with another option."""
    for more, named in (
        (["--growth-factor", "9", "--turns", "0"], ["--growth-factor: Expected", "--turns: Expected"]),
        (["--growth-factor", "1.0", "--train-scope", "new", "--own-head"], ["--train-scope: ", "--own-head: "]),
    ):
        assert main(words(tiny_base, data, tmp_path / "ours", *more)) == 2
        told = capsys.readouterr().err
        for one in named:
            assert told.count(one) == 1


def test_one_row_is_not_enough(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "one.jsonl", rows(1))
    assert main(words(tiny_base, data, tmp_path / "ours")) == 2
    assert "[dataset_empty]" in capsys.readouterr().err


def test_help_explains_every_hyperparameter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in set(Hyperparams.__struct_fields__) - {"output_name"}:
        assert f"--{name.replace('_', '-')}" in text
        assert MEANINGS[name] in text
    assert "1.0 to 4.0 (1.52)" in text
    assert "peak learning rate, of the new parameters; above 0, to 1 (0.0001)" in text
