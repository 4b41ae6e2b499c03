"""docs/training.md has every hyperparameter with its default and bounds, and its commands work."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest
from conftest import rows, write_rows
from fusion_core.job_spec import FinetuneHyperparams, Hyperparams
from fusion_engine.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/training.md").read_text()


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading: name -> the other cells."""
    lines = [line for line in PAGE.split(heading, 1)[1].split("\n## ", 1)[0].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str) else str(value)


def test_every_hyperparameter_of_training_is_there_with_its_default() -> None:
    documented = table("## Hyperparameters of a training job")
    defaults = {field.name: shown(field.default) for field in msgspec.structs.fields(Hyperparams)}
    defaults["lr"] = "0.0001"
    assert {name: cells[1] for name, cells in documented.items()} == defaults


def test_where_fine_tuning_differs_is_there() -> None:
    documented = table("## Hyperparameters of a fine-tuning job")
    fields = {field.name: field.default for field in msgspec.structs.fields(FinetuneHyperparams)}
    shared = {field.name: field.default for field in msgspec.structs.fields(Hyperparams)}
    different = {name for name, default in fields.items() if shared.get(name) != default}
    assert different == {*documented, "weight_decay", "replay_fraction"} | ({"steps"} - set(shared))
    assert documented["lora_rank"][1] == str(fields["lora_rank"])
    assert documented["steps"][1] == str(fields["steps"])
    assert float(documented["lr"][1]) == fields["lr"]


@pytest.mark.parametrize(
    "name", ["turns", "cycles", "seq_len", "batch_size", "growth_factor", "replay_fraction", "retain"]
)
def test_bounds_are_those_of_the_code(name: str) -> None:
    low, high = (
        float(word.replace(",", "")) for word in table("## Hyperparameters of a training job")[name][0].split(" to ")
    )
    kind = float if name in ("growth_factor", "replay_fraction", "retain") else int
    for value in (low, high):
        msgspec.convert({name: kind(value)}, Hyperparams)
    for value in (low - 1, high + 1):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({name: kind(value)}, Hyperparams)


def test_the_commands_of_the_page_of_the_engine_work(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand there, on a tiny model, with options that make them short."""
    section = (ROOT / "docs/engine.md").read_text().split("## `train`", 1)[1]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    commands = [shlex.split(line)[1:] for line in block[1].splitlines()]
    assert len(commands) == 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Llama-3.2-1B").symlink_to(tiny_base)
    (tmp_path / "texts").mkdir()
    for path in ("manual.jsonl", "more.jsonl", "texts/a.jsonl"):
        write_rows(tmp_path / path, rows(80))
    short = ["--train-steps", "2", "--cycles", "1", "--seq-len", "16", "--pool-rows", "4", "--threads", "1"]
    for number, words in enumerate(commands):
        if number == 1:
            (tmp_path / "ours").rename(tmp_path / "first")
        assert main([*words, *short]) == 0
        assert (tmp_path / words[3] / "model.safetensors").exists()
