"""Verifying a base model's folder: what is accepted, and that every fault is named with a code, all at once."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fusion_core.problems import PROBLEMS
from fusion_orchestrator.model_folder import BaseModelRejectedError, verify_model_folder


def rejection(path: Path) -> dict[str, tuple[str, str]]:
    """file -> (code, message) of every fault."""
    with pytest.raises(BaseModelRejectedError) as caught:
        verify_model_folder(path)
    assert {fault.code for fault in caught.value.faults} <= PROBLEMS.keys()
    return {fault.file: (fault.code, fault.message) for fault in caught.value.faults}


def test_a_whole_folder_is_accepted_and_left_as_it_was(folder: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.path.iterdir()}
    verified = verify_model_folder(folder.path)
    assert verified.family == "llama"
    assert verified.precision == "fp32"
    assert verified.params == sum(math.prod(shape) for shape in shapes.values())
    assert verified.files == ("config.json", "model.safetensors", "tokenizer.json")
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.path.iterdir()} == before


def test_shards_with_their_index_are_accepted(folder: Any) -> None:
    folder.shard()
    assert len(verify_model_folder(folder.path).files) == 5


def test_hidden_files_folders_and_other_kinds_are_left_out(folder: Any) -> None:
    (folder.path / ".gitattributes").touch()
    (folder.path / "original").mkdir()
    (folder.path / "original" / "consolidated.00.pth").touch()
    (folder.path / "photo.png").touch()
    assert verify_model_folder(folder.path).skipped == (".gitattributes", "original", "photo.png")


def test_a_link_inside_the_folder_is_followed(folder: Any) -> None:
    (folder.path / "tokenizer.json").rename(folder.path / "real.json")
    (folder.path / "tokenizer.json").symlink_to("real.json")
    verify_model_folder(folder.path)


def test_a_tied_head_that_was_saved_all_the_same_is_not_counted(folder: Any) -> None:
    folder.change_config(tie_word_embeddings=True)
    verify_model_folder(folder.path)


def test_a_special_token_beyond_the_embedding_is_let_pass(folder: Any) -> None:
    tokenizer = {"model": {"vocab": {"a": 31}}, "added_tokens": [{"id": 32, "special": True}]}
    folder.write_json("tokenizer.json", tokenizer)
    verify_model_folder(folder.path)


def _remove_shard(folder: Any) -> None:
    folder.shard()
    (folder.path / "model-00002-of-00002.safetensors").unlink()


def _truncate(folder: Any) -> None:
    weights = folder.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


def _lengthen(folder: Any) -> None:
    with (folder.path / "model.safetensors").open("ab") as file:
        file.write(b"\0")


def _huge_header(folder: Any) -> None:
    (folder.path / "model.safetensors").write_bytes(b"\xff" * 16)


def _edit_header(edit: Callable[[dict[str, Any]], None]) -> Callable[[Any], None]:
    def breaks(folder: Any) -> None:
        path = folder.path / "model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        edit(header)
        encoded = json.dumps(header).encode()
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :])

    return breaks


def _out_of_range(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["data_offsets"] = [0, 10**12]


def _wrong_shape(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["shape"] = [32, 9]


def _unknown_dtype(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["dtype"] = "F7"


def _link_outside(folder: Any) -> None:
    outside = folder.path.parent / "secret.json"
    outside.write_text("{}")
    (folder.path / "generation_config.json").symlink_to(outside)


def _traversal(folder: Any) -> None:
    folder.write_json("model.safetensors.index.json", {"weight_map": {"a": "../../etc/x.safetensors"}})


def _fifo(folder: Any) -> None:
    os.mkfifo(folder.path / "pipe.json")


CASES: dict[str, tuple[Callable[[Any], object], str, str, str]] = {
    "missing shard": (_remove_shard, "model-00002-of-00002.safetensors", "base_model_incomplete", "missing"),
    "no weights": (
        lambda f: (f.path / "model.safetensors").unlink(), "model.safetensors", "base_model_incomplete", "missing",
    ),
    "no config": (lambda f: (f.path / "config.json").unlink(), "config.json", "base_model_incomplete", "read"),
    "config not JSON": (
        lambda f: (f.path / "config.json").write_text("["), "config.json", "base_model_corrupt", "JSON",
    ),
    "config nested without end": (
        lambda f: (f.path / "config.json").write_text('{"a":' * 100_000), "config.json", "base_model_corrupt", "JSON",
    ),
    "unknown architecture": (
        lambda f: f.change_config(architectures=["GPT2LMHeadModel"]), "config.json", "unsupported_architecture", "GPT2",
    ),
    "no heads": (lambda f: f.change_config(num_attention_heads=0), "config.json", "base_model_corrupt", "describe"),
    "custom code": (lambda f: f.change_config(auto_map={}), "config.json", "unsupported_architecture", "auto_map"),
    "quantised": (
        lambda f: f.change_config(quantization_config={}), "config.json", "unsupported_architecture", "unquantised",
    ),
    "no tokenizer": (
        lambda f: (f.path / "tokenizer.json").unlink(), "tokenizer", "base_model_incomplete", "tokenizer.model",
    ),
    "tokenizer past the embedding": (
        lambda f: f.write_json("tokenizer.json", {"added_tokens": [{"id": 32}]}), "tokenizer.json",
        "base_model_corrupt", "id 32",
    ),
    "pickled weights": (
        lambda f: (f.path / "pytorch_model.bin").touch(), "pytorch_model.bin", "base_model_corrupt", "safetensors",
    ),
    "truncated": (_truncate, "model.safetensors", "base_model_corrupt", "holds"),
    "too long": (_lengthen, "model.safetensors", "base_model_corrupt", "holds"),
    "absurd header": (_huge_header, "model.safetensors", "base_model_corrupt", "cut off"),
    "empty file": (
        lambda f: (f.path / "model.safetensors").write_bytes(b""), "model.safetensors", "base_model_corrupt", "cut off",
    ),
    "offset out of range": (_edit_header(_out_of_range), "model.safetensors", "base_model_corrupt", "lm_head"),
    "shape contradicts offsets": (_edit_header(_wrong_shape), "model.safetensors", "base_model_corrupt", "lm_head"),
    "unknown dtype": (_edit_header(_unknown_dtype), "model.safetensors", "base_model_corrupt", "F7"),
    "link that leaves the folder": (_link_outside, "generation_config.json", "base_model_corrupt", "cp -rL"),
    "index names a path": (_traversal, "model.safetensors.index.json", "base_model_corrupt", "beside"),
    "not a file": (_fifo, "pipe.json", "base_model_incomplete", "regular"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_fault(folder: Any, case: str) -> None:
    breaks, file, code, word = CASES[case]
    breaks(folder)
    found_code, message = rejection(folder.path)[file]
    assert found_code == code
    assert word in message


def test_a_wrong_parameter_count_names_both_numbers(folder: Any) -> None:
    folder.change_config(num_hidden_layers=3)
    code, message = rejection(folder.path)["weights"]
    held = verify_params(folder)
    assert code == "base_model_corrupt"
    assert f"{held:,}" in message
    assert f"{held + 592:,}" in message  # one more block: 4 attention and 3 FFN projections and 2 norms


def verify_params(folder: Any) -> int:
    folder.change_config()
    return verify_model_folder(folder.path).params


def test_quantised_tensors_are_refused(folder: Any, shapes: dict[str, Any], make_file: Callable[..., bytes]) -> None:
    (folder.path / "model.safetensors").write_bytes(make_file(shapes, dtype="I8"))
    assert rejection(folder.path)["weights"][0] == "unsupported_architecture"


def test_precision_is_read_from_the_tensors(
    folder: Any, shapes: dict[str, Any], make_file: Callable[..., bytes]
) -> None:
    (folder.path / "model.safetensors").write_bytes(make_file(shapes, dtype="BF16"))
    assert verify_model_folder(folder.path).precision == "bf16"


def test_an_index_that_disagrees_with_its_shards(folder: Any) -> None:
    folder.shard()
    path = folder.path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, second = sorted(set(index["weight_map"].values()))
    moved = next(name for name, shard in index["weight_map"].items() if shard == first)
    index["weight_map"][moved] = second
    path.write_text(json.dumps(index))
    faults = rejection(folder.path)
    assert "the index does not" in faults[first][1]
    assert moved in faults[second][1]


def test_every_fault_is_named_at_once(folder: Any) -> None:
    for name in ("no tokenizer", "pickled weights", "truncated", "custom code"):
        CASES[name][0](folder)
    assert set(rejection(folder.path)) == {"tokenizer", "pytorch_model.bin", "model.safetensors", "config.json"}


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert rejection(tmp_path / "nowhere")[str(tmp_path / "nowhere")][0] == "base_model_incomplete"
