"""`fusion-engine contract`: from a model folder to a narrower one, planned, refused, interrupted and gone on with."""

import json
import math
import os
import re
from pathlib import Path

import pytest
from conftest import rows, write_rows
from fusion_core.contraction_plan import ContractionPlan, plan_contraction
from fusion_engine.base_folder import open_base
from fusion_engine.checkpoint import latest_checkpoint
from fusion_engine.cli import main
from fusion_engine.files import build_manifest
from msgspec.json import decode
from transformers import AutoModelForCausalLM

OPTIONS = ["--train-steps", "8", "--lr", "0.01", "--seq-len", "16", "--batch-size", "4", "--threads", "1"]


def words(source: Path, destination: Path, *more: str) -> list[str]:
    return ["contract", str(source), str(destination), *OPTIONS, *more]


def test_it_contracts_heals_and_leaves_nothing_but_the_model(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    assert main(words(tiny_base, small, "--ratio", "0.25", "--layers", "3")) == 0
    printed = capsys.readouterr()
    plan = plan_contraction(json.loads((tiny_base / "config.json").read_text()), 0.25, 3)
    assert f"{plan.params_before:,} -> {plan.params_after:,}" in printed.out
    assert "source" in printed.out.splitlines()[2]
    assert "step 8: held-out perplexity" in printed.err
    model = AutoModelForCausalLM.from_pretrained(small, local_files_only=True)
    assert (model.config.intermediate_size, model.num_parameters()) == (plan.ffn_after, plan.params_after)
    assert sum(math.prod(tensor.shape) for tensor in open_base(small).tensors.values()) == plan.params_after
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert main(words(tiny_base, small)) == 2
    assert "exists; name a folder that does not" in capsys.readouterr().err


def test_data_is_healed_and_measured_on_beside_the_sources_own_text(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(150))
    assert main(words(tiny_base, tmp_path / "small", "--data", data)) == 0
    assert "on text that the source wrote" in capsys.readouterr().out
    assert "rows.jsonl" in (tmp_path / "small" / "README.md").read_text()


def test_the_plan_alone_writes_nothing(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contract", str(tiny_base), str(tmp_path / "small"), "--ratio", "0.75", "--plan"]) == 0
    config = json.loads((tiny_base / "config.json").read_text())
    assert decode(capsys.readouterr().out, type=ContractionPlan) == plan_contraction(config, 0.75)
    assert not list(tmp_path.iterdir())


def test_a_repeated_command_goes_on_after_kill_9(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole" / "small", tmp_path / "killed" / "small"
    for folder in (whole.parent, killed.parent):
        folder.mkdir()
    assert main(words(tiny_base, whole)) == 0
    pid = os.fork()
    if pid == 0:
        try:
            os.environ["FUSION_FAILPOINT"] = "step:6"
            main(words(tiny_base, killed, "--checkpoint-every", "0"))
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert latest_checkpoint(killed.with_name("small.run") / "checkpoints") is not None
    capsys.readouterr()
    assert main(words(tiny_base, killed)) == 0
    assert "step 2:" not in capsys.readouterr().err, "measured before the kill, and kept in the checkpoint"
    assert build_manifest(killed) == build_manifest(whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layers", "4"], "num_layers_to_contract is 4; this model has 3 layers"),
        (["--layers", "0"], "num_layers_to_contract is 0; this model has 3 layers"),
        (["--ratio", "0.95"], "it must lie between 0.1 and 0.9"),
        (["--train-steps", "5001"], "--train-steps: Expected `int` <= 5000"),
        (["--seq-len", "4096"], "use 128"),
        (["--data", "/nowhere.jsonl"], "there is no such file: /nowhere.jsonl"),
    ],
)
def test_what_cannot_be_done_is_said_on_stderr(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(words(tiny_base, tmp_path / "small", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_model_that_is_none_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    assert main(words(tmp_path, tmp_path / "small")) == 2
    assert "these can: LlamaForCausalLM" in capsys.readouterr().err


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["contract", "--help"])
    text = capsys.readouterr().out
    assert "updates of healing; 0 to 5,000 (1000)" in " ".join(text.split())
    assert "fusion-engine contract ./ours ./small --plan" in text


def test_every_option_is_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["contract", "--help"])
    page = (Path(__file__).parents[2] / "docs/engine.md").read_text()
    section = page.split("## `contract`", 1)[1].split("\n## ", 1)[0]
    options = set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    assert {option for option in options if f"`{option}" not in section} == set()
