"""The command line: what it prints, what it refuses and with which exit code, and that planning needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fusion_core.growth_plan import Axis, GrowthPlan, plan_growth
from fusion_engine.cli import INTERRUPTED_EXIT, main
from msgspec.json import decode
from transformers import AutoModelForCausalLM


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_plan_prints_the_exact_plan(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((tiny_base / "config.json").read_text())
    expected = plan_growth(config, layers_added=2, placement="even")
    arguments = ("plan", str(tiny_base), "--layers-added", "2", "--placement", "even")
    assert decode(printed(capsys, *arguments, "--json"), type=GrowthPlan) == expected
    assert f"{expected.params_before:,} -> {expected.params_after:,}" in printed(capsys, *arguments)
    assert "new head    a copy of the embedding" in printed(capsys, *arguments, "--own-head")


def test_inspect_names_family_and_growth(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "inspect", str(tiny_base))
    assert text.startswith("family      llama\n")
    assert "one layer at a time; by default to 4 layers, a head of its own and" in text
    report = json.loads(printed(capsys, "inspect", str(tiny_base), "--json"))
    assert report["inference"]["cache_per_token"] == 2 * 2 * 3 * 2 * 8  # bf16, K and V, layers, heads, channels


def test_a_model_that_grows_in_width_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "depth     no: the model has 4 layers" in printed(capsys, "inspect", str(tmp_path))


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        (None, [], "there is no such file; give a folder with a config.json [base_model_incomplete]"),
        ("{", [], "not JSON"),
        ("[]", [], "not a JSON object [base_model_corrupt]"),
        ('{"architectures": ["MambaForCausalLM"]}', [], "these can: LlamaForCausalLM, MistralForCausalLM"),
        ('{"architectures": ["LlamaForCausalLM"], "hidden_size": -1}', [], "does not describe a model"),
        ('{"architectures": ["LlamaForCausalLM"]}', ["--layers-added", "999"], "it can be 1 to 100"),
        ('{"architectures": ["LlamaForCausalLM"]}', ["--growth-factor", "9"], "between 1.0 and 4.0"),
    ],
)
def test_bad_input_is_named_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str | None, words: list[str], message: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert main(["plan", str(tmp_path), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fusion_engine: ")
    assert message in captured.err


@pytest.mark.parametrize(
    "words", [[], ["plan"], ["plan", "x", "--growth-factor", "big"], ["nonsense", "x"], ["gro"], ["."]]
)
def test_arguments_that_cannot_be_parsed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: fusion-engine" in capsys.readouterr().err


@pytest.mark.parametrize("axis", ["depth", "width"])
def test_grow_writes_a_model_that_computes_the_same(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], axis: Axis
) -> None:
    text = printed(capsys, "grow", str(tiny_base), str(tmp_path / "grown"), "--axis", axis, "--growth-factor", "1.4")
    assert "checked     max |logit difference| 0.0 on 4 prompts" in text
    assert f"written     {tmp_path / 'grown'}" in text
    config = json.loads((tiny_base / "config.json").read_text())
    plan = plan_growth(config, axis=axis, growth_factor=1.4)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", local_files_only=True)
    assert model.num_parameters() == plan.params_after
    card = (tmp_path / "grown" / "README.md").read_text()
    assert f"grown is tiny, grown in {axis}" in card
    assert "| function_preservation | 0 |" in card


def test_grow_overwrites_nothing(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grow", str(tiny_base), str(tmp_path)]) == 2
    assert "exists; name a folder that does not [validation_failed]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_seen_only_once_it_has_passed_the_check(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def check(*_: object) -> float:
        seen.append((tmp_path / "grown").exists())
        raise KeyboardInterrupt

    monkeypatch.setattr("fusion_engine.guard.check_growth", check)
    assert main(["grow", str(tiny_base), str(tmp_path / "grown")]) == INTERRUPTED_EXIT
    assert seen == [False]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_fails_the_check_is_removed(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fusion_engine.families.Family.writes_residual", lambda *_: False)
    assert main(["grow", str(tiny_base), str(tmp_path / "grown")]) == 2
    assert "[growth_not_preserving]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_planning_imports_no_torch(tiny_base: Path) -> None:
    program = (
        "import sys; from fusion_engine.cli import main; main(sys.argv[1:]);"
        " sys.exit(any(name.split('.')[0] in ('torch', 'transformers', 'numpy') for name in sys.modules))"
    )
    for words in (["plan", str(tiny_base)], ["inspect", str(tiny_base)]):
        subprocess.run([sys.executable, "-c", program, *words], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_an_unknown_option_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "src", "rows.jsonl", "dst", "--cycels", "3"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --cycels 3; nearest: --cycles" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--processes", "0"], ["--threads", "-1"], ["--checkpoint-every", "nan"], ["--pool-rows", "-3"]]
)
def test_numbers_of_a_process_are_bounded(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "src", "rows.jsonl", "dst", *words])
    assert f"argument {words[0]}: " in capsys.readouterr().err


def test_a_path_that_cannot_be_used_is_an_answer(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for destination in (tmp_path / "file" / "grown", tmp_path / ("x" * 300)):
        assert main(["grow", str(tiny_base), str(destination)]) == 2
        assert "[inputs_unavailable]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--growth-factor", "1.0", "--train-scope", "new"], "--train-scope: nothing is new at growth_factor 1.0"),
        (["--growth-factor", "1.3", "--layers-added", "2"], "--layers-added: say either"),
        (["--growth-axis", "width", "--layers-added", "2"], "--layers-added: adds depth"),
        (["--seq-len", "129"], "seq_len 129 is above this base model's limit; use 128"),
        (["--seq-len", "16", "--processes", "2"], "--batch-size 1 cannot be shared by 2 processes"),
    ],
)
def test_train_refuses_what_contradicts_before_any_work(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["train", str(tiny_base), str(tiny_base), str(tmp_path / "ours"), *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "sampling" not in captured.err
    assert not list(tmp_path.iterdir())
