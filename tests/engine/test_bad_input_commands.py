"""Bad input at the command line: each command that meets it refuses it, with its code, and leaves no DST."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import rows, write_rows
from fusion_engine.cli import DISK_FULL_EXIT, main
from safetensors.torch import load_file, save_file

OPTIONS = ["--train-steps", "2", "--seq-len", "16", "--threads", "1"]
COMMANDS: dict[str, tuple[str, ...]] = {  # what each takes after MODEL
    "grow": ("DST",),
    "train": ("DATA", "DST", *OPTIONS),
    "contract": ("DST", *OPTIONS),
    "evaluate": ("DATA",),
}
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """refused(command, model, data, *more) -> stderr of a command that ends with 2 and writes no DST."""

    def run(command: str, model: Path, data: Path, *more: str) -> str:
        paths = {"DATA": str(data), "DST": str(tmp_path / "dst")}
        words = [paths.get(word, word) for word in COMMANDS[command]]
        assert main([command, str(model), *words, *more]) == 2
        assert not (tmp_path / "dst").exists()
        return capsys.readouterr().err

    return run


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return Path(write_rows(tmp_path / "good.jsonl", rows(60)))


def truncated(base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def corrupt(base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])


def missing_shards(base: Path) -> None:
    weight_map = {f"t{number}": f"model-{number:05}-of-00002.safetensors" for number in (1, 2)}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def pickled(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def larger_vocabulary(base: Path) -> None:
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    number = max(tokenizer["model"]["vocab"].values()) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append(flags | {"id": number, "content": "<extra>"})
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))


def not_numbers(base: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(base / "model.safetensors").items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("damage", "message", "code"),
    [
        (truncated, "model.safetensors: the header describes", "base_model_corrupt"),
        (corrupt, "model.safetensors: the header should take", "base_model_corrupt"),
        (missing_shards, "model-00001-of-00002.safetensors: the file is missing", "base_model_incomplete"),
        (pickled, "convert the model to safetensors", "base_model_corrupt"),
        (larger_vocabulary, "1 of its tokens have no row in the model's embedding", "base_model_corrupt"),
        (not_numbers, "model.layers.1.mlp.up_proj.weight holds NaN or infinity", "base_model_corrupt"),
    ],
)
def test_a_model_that_is_damaged(
    copy_base: Path, good: Path, refused: Refused, command: str, damage: Callable[[Path], None], message: str, code: str
) -> None:
    damage(copy_base)
    told = refused(command, copy_base, good)
    assert message in told
    assert f"[{code}]" in told


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"prompt": "what grows", "completion": " "}, "empty_completion"),
        ({"messages": [{"role": "user", "content": "what grows"}]}, "chat_without_assistant"),
    ],
)
def test_a_row_is_named_where_the_person_wrote_it_and_before_anything_is_sampled(
    tiny_base: Path, good: Path, tmp_path: Path, refused: Refused, row: dict[str, object], code: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(good.read_text() + json.dumps(row) + "\n")
    for command, data, more in (
        ("train", bad, ()),
        ("train", good, ("--heldout", str(bad))),
        ("train", good, ("--rehearsal", str(bad))),
        ("contract", good, ("--data", str(bad))),
        ("evaluate", bad, ()),
    ):
        told = refused(command, tiny_base, data, *more)
        assert "bad.jsonl, line 61: " in told
        assert f"[{code}]" in told
        assert "sampl" not in told


def test_less_data_than_a_sequence(tiny_base: Path, tmp_path: Path, refused: Refused) -> None:
    short = Path(write_rows(tmp_path / "short.jsonl", ["the model", "the old"]))
    for command, more in (("train", ()), ("contract", ("--data", str(short)))):
        told = refused(command, tiny_base, short, *more)
        assert "DATA has 6 tokens; one sequence takes 17" in told
        assert "[dataset_too_short]" in told
        assert "sampl" not in told


def test_a_sequence_beyond_the_models_positions(tiny_base: Path, good: Path, refused: Refused) -> None:
    for command in ("train", "contract", "evaluate"):
        told = refused(command, tiny_base, good, "--seq-len", "129")
        assert "seq_len 129 is above this base model's limit; use 128 [validation_failed]" in told


@pytest.mark.parametrize("command", ["train", "contract"])
def test_a_disk_that_fills_during_the_export(
    tiny_base: Path,
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """The export's weights go to /dev/full, where the kernel answers ENOSPC; with room again, the command goes on."""
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        exporting = mode == "wb" and self.suffix == ".safetensors" and "export" in self.parent.name
        return opened(Path("/dev/full") if exporting else self, mode, *args, **kwargs)  # type: ignore[arg-type]

    words = {"DATA": str(good), "DST": str(tmp_path / "dst")}
    line = [command, str(tiny_base), *(words.get(word, word) for word in COMMANDS[command]), "--checkpoint-every", "0"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        assert main(line) == DISK_FULL_EXIT
    assert ": disk_full: writing " in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()
    assert main(line) == 0
    assert (tmp_path / "dst" / "model.safetensors").is_file()
