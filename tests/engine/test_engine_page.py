"""The commands of docs/engine.md that need no data work as they stand there, and print what the page says."""

import json
import re
import shlex
from pathlib import Path

import pytest
from fusion_engine.cli import main
from tiny_families import make_family_model

PAGE = (Path(__file__).parents[2] / "docs/engine.md").read_text()
FALCON_H1 = {
    "architectures": ["FalconH1ForCausalLM"],
    "num_hidden_layers": 24,
    "hidden_size": 2048,
    "intermediate_size": 4608,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_d_ssm": 3072,
    "mamba_n_heads": 48,
    "mamba_d_state": 256,
    "mamba_rms_norm": True,
    "vocab_size": 65_537,
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the models that the page names: Falcon-H1's true config, tiny weights of the others."""
    for name, family in (("Llama-3.2-1B", "llama-tied"), ("gemma-2-2b", "gemma2"), ("Qwen3-0.6B", "qwen3")):
        make_family_model(tmp_path / name, family)
    (tmp_path / "Falcon-H1-1.5B-Base").mkdir()
    (tmp_path / "Falcon-H1-1.5B-Base" / "config.json").write_text(json.dumps(FALCON_H1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(command: str) -> list[str]:
    return re.findall(r"```\w*\n(.*?)```", PAGE.split(f"## `{command}`", 1)[1].split("\n## ", 1)[0], re.DOTALL)


def run(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    program, *words = shlex.split(line)
    assert program == "fusion-engine"
    assert main(words) == 0, line
    return capsys.readouterr().out


def test_inspect_prints_what_the_page_says(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, printed = blocks("inspect")
    assert run(command, capsys) == printed


@pytest.mark.parametrize(("command", "count"), [("plan", 4), ("grow", 4)])
def test_the_commands_work(models: Path, capsys: pytest.CaptureFixture[str], command: str, count: int) -> None:
    lines = blocks(command)[0].splitlines()
    assert len(lines) == count
    for line in lines:
        assert run(line, capsys)
    if command == "grow":
        for folder in ("larger", "deeper", "wider", "wider-and-deeper"):
            assert (models / folder / "model.safetensors").exists()
        assert "2. from wider: grown in depth" in (models / "wider-and-deeper" / "README.md").read_text()


def test_the_options_are_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "grow"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        section = PAGE.split("## `plan`", 1)[1].split("## `train`", 1)[0]
        options = set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
        assert {option for option in options if f"`{option}" not in section} == set()
