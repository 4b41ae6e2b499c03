"""Base models that nobody can grow: each is refused with a code, its file and its fault, before anything is written."""

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_core.growth_plan import Axis, plan_growth
from fusion_core.problems import PROBLEMS
from fusion_engine.base_folder import load_tokenizer, open_base
from fusion_engine.grow import grow
from fusion_engine.outcomes import RejectedError
from safetensors.torch import load_file, save_file


def refused(action: Callable[[], object]) -> RejectedError:
    with pytest.raises(RejectedError) as caught:
        action()
    assert caught.value.code in PROBLEMS
    return caught.value


def edit_header(weights: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = weights.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    edit(header)
    encoded = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


def overlap(header: dict[str, Any]) -> None:
    first, second = [entry for name, entry in header.items() if name != "__metadata__"][:2]
    second["data_offsets"] = first["data_offsets"]


def negative(header: dict[str, Any]) -> None:
    entry = header["model.norm.weight"]
    entry["shape"] = [-entry["shape"][0], -1]


@pytest.mark.parametrize(
    "edit",
    [
        overlap,
        negative,
        lambda header: header["model.norm.weight"].update(dtype="F4"),
        lambda header: header["model.norm.weight"].update(shape=[7]),
        lambda header: header["model.norm.weight"].pop("shape"),
        lambda header: header.update(extra=[1]),
    ],
    ids=["overlap", "negative", "dtype", "shape", "incomplete", "not a tensor"],
)
def test_a_corrupt_header(copy_base: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    edit_header(copy_base / "model.safetensors", edit)
    error = refused(lambda: open_base(copy_base))
    assert error.code == "base_model_corrupt"
    assert error.errors[0]["file"] == "model.safetensors"


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, struct.pack("<Q", 8) + b"not json", b"[" * 5000])
def test_what_is_no_safetensors_file_at_all(copy_base: Path, content: bytes) -> None:
    (copy_base / "model.safetensors").write_bytes(content)
    assert refused(lambda: open_base(copy_base)).code == "base_model_corrupt"


def test_every_missing_shard_is_named(copy_base: Path) -> None:
    weight_map = {f"t{number}": f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)}
    (copy_base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    error = refused(lambda: open_base(copy_base))
    assert error.code == "base_model_incomplete"
    assert [fault["file"] for fault in error.errors] == sorted(weight_map.values())
    assert "and 2 more faults" in error.message


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}'])
def test_an_index_that_cannot_be_used(copy_base: Path, content: str) -> None:
    (copy_base / "model.safetensors.index.json").write_text(content)
    error = refused(lambda: open_base(copy_base))
    assert (error.code, error.errors[0]["file"]) == ("base_model_corrupt", "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_and_never_read(copy_base: Path, name: str) -> None:
    (copy_base / "model.safetensors").unlink()
    (copy_base / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    error = refused(lambda: open_base(copy_base))
    assert error.code == "base_model_corrupt"
    assert name in error.message
    assert "convert the model to safetensors" in error.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers(copy_base: Path, tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    weights, config = copy_base / "model.safetensors", json.loads((copy_base / "config.json").read_text())
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(weights).items()}
    axis: Axis
    for name, axis in (("model.norm.weight", "depth"), ("model.layers.1.mlp.up_proj.weight", "width")):
        plan = plan_growth(config, axis=axis)
        broken = {key: tensor.clone() for key, tensor in tensors.items()}
        broken[name].view(-1)[-1] = value
        save_file(broken, weights)
        error = refused(partial(grow, open_base(copy_base, plan), plan, tmp_path / "grown"))
        assert error.code == "base_model_corrupt"
        assert f"tensor {name} holds NaN or infinity" in error.message
        assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_largest_and_smallest_numbers_are_numbers(copy_base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(copy_base / "model.safetensors").items()}
    extreme = torch.finfo(dtype)
    tensors["model.norm.weight"][:3] = torch.tensor([extreme.max, extreme.min, extreme.tiny], dtype=dtype)
    save_file(tensors, copy_base / "model.safetensors")
    plan = plan_growth(json.loads((copy_base / "config.json").read_text()))
    grow(open_base(copy_base, plan), plan, tmp_path / "grown")


def add_tokens(base: Path, count: int, *, special: bool) -> None:
    path = base / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    largest = max(tokenizer["model"]["vocab"].values())
    template = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    for number in range(largest + 1, largest + 1 + count):
        tokenizer["added_tokens"].append(template | {"id": number, "content": f"<extra{number}>"})
    path.write_text(json.dumps(tokenizer))


def test_a_vocabulary_beyond_the_embedding(copy_base: Path) -> None:
    add_tokens(copy_base, 2, special=False)
    error = refused(lambda: load_tokenizer(open_base(copy_base)))
    assert error.code == "base_model_corrupt"
    assert "2 of its tokens have no row in the model's embedding" in error.message
    assert "<extra" in error.message


def test_a_special_token_beyond_the_embedding_is_let_pass(copy_base: Path) -> None:
    """Gemma 3 1B: its tokenizer knows the image token of the larger sizes, its embedding does not."""
    add_tokens(copy_base, 1, special=True)
    load_tokenizer(open_base(copy_base))


def test_a_tokenizer_that_cannot_be_read(copy_base: Path) -> None:
    (copy_base / "tokenizer.json").write_text('{"model": 3}')
    assert refused(lambda: load_tokenizer(open_base(copy_base))).code == "base_model_corrupt"


def test_a_tokenizer_with_code_of_its_own_runs_none(copy_base: Path) -> None:
    (copy_base / "trick.py").write_text("raise SystemExit('code of the model ran')")
    config = json.loads((copy_base / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Trick", "auto_map": {"AutoTokenizer": ["trick.Trick", None]}}
    (copy_base / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        load_tokenizer(open_base(copy_base))
    except RejectedError as error:
        assert error.code == "base_model_corrupt"


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "MixtralForCausalLM", "Gemma3ForConditionalGeneration"])
def test_other_architectures_are_refused_by_name(copy_base: Path, architecture: str) -> None:
    config = json.loads((copy_base / "config.json").read_text())
    (copy_base / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    error = refused(lambda: open_base(copy_base))
    assert error.code == "unsupported_architecture"
    assert architecture in error.message
    for works in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3", "SmolLM3", "FalconH1"):
        assert f"{works}ForCausalLM" in error.message
