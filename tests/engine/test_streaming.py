"""Growing streams: its memory does not follow the model's size; its folders are whole, sharded, or not there at all."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_core.growth_plan import Axis, plan_growth
from fusion_engine.base_folder import open_base
from fusion_engine.cli import DISK_FULL_EXIT, main
from fusion_engine.grow import grow
from fusion_engine.guard import check_growth, guard_prompts
from fusion_engine.safetensors_stream import MemoryTensor, TensorSource, ZeroTensor, write_model
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

PROMPTS = guard_prompts([], 24)
MIB = 1024 * 1024
# Prints the peak memory, in KiB, before and after growing argv[1] into argv[2] along argv[3]. Not ru_maxrss, which a
# process inherits from the one that started it.
GROW = """
import json, re, sys
from pathlib import Path
from fusion_core.growth_plan import plan_growth
from fusion_engine.base_folder import open_base
from fusion_engine.grow import grow

def peak():
    return re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]

source, target, axis = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
plan = plan_growth(json.loads((source / "config.json").read_text()), axis=axis)
base = open_base(source, plan)
before = peak()
grow(base, plan, target, shard_bytes=100_000_000)
print(before, peak())
"""


@pytest.fixture(scope="module")
def large_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Llama of 310 MiB, whose largest tensor has 31, in shards; all its weights are zero."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=15,
        num_attention_heads=8,
        vocab_size=16_000,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    tensors: dict[str, TensorSource] = {
        name: ZeroTensor("F32", tuple(parameter.shape)) for name, parameter in model.named_parameters()
    }
    write_model(folder, tensors, shard_bytes=50_000_000)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["LlamaForCausalLM"]}))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("axis", ["depth", "width"])
def test_peak_memory_does_not_follow_the_models_size(large_base: Path, tmp_path: Path, axis: Axis) -> None:
    command = [sys.executable, "-c", GROW, str(large_base), str(tmp_path / "grown"), axis]
    output = subprocess.run(command, check=True, timeout=240, capture_output=True, text=True).stdout
    before, after = (1024 * int(number) for number in output.split())
    written = sum(path.stat().st_size for path in (tmp_path / "grown").glob("*.safetensors"))
    assert written > 440 * MIB
    assert after - before < 40 * MIB, f"{(after - before) / MIB:.0f} MiB"


@pytest.mark.parametrize("axis", ["depth", "width"])
def test_a_grown_model_in_shards_loads_and_computes_the_same(tiny_base: Path, tmp_path: Path, axis: Axis) -> None:
    plan = plan_growth(json.loads((tiny_base / "config.json").read_text()), axis=axis)
    grow(open_base(tiny_base, plan), plan, tmp_path / "grown", shard_bytes=20_000)
    shards = sorted(path.name for path in (tmp_path / "grown").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert check_growth(tiny_base, tmp_path / "grown", PROMPTS, torch.device("cpu")) == 0.0


def test_tokenizer_generation_config_and_licence_come_along(copy_base: Path, tmp_path: Path) -> None:
    GenerationConfig(temperature=0.7, do_sample=True, eos_token_id=1).save_pretrained(copy_base)
    (copy_base / "LICENSE").write_text("Do as you like.")
    (copy_base / "notes.txt").write_text("not for others")
    plan = plan_growth(json.loads((copy_base / "config.json").read_text()))
    grow(open_base(copy_base, plan), plan, tmp_path / "grown")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        assert (tmp_path / "grown" / name).read_bytes() == (copy_base / name).read_bytes()
    assert not (tmp_path / "grown" / "notes.txt").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", local_files_only=True)
    assert model.generation_config.temperature == 0.7


def test_a_disk_that_fills_leaves_nothing(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights go to /dev/full, where the kernel answers ENOSPC."""
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return opened(Path("/dev/full") if mode == "wb" and self.suffix == ".safetensors" else self, mode, *args)

    monkeypatch.setattr(Path, "open", full)
    target = tmp_path / "grown"
    assert main(["grow", str(tiny_base), str(target)]) == DISK_FULL_EXIT
    assert ": disk_full: writing " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the model takes") as caught:
        write_model(tmp_path, {"huge": ZeroTensor("F32", (2**40, 2**12))})
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_in_memory_is_written_in_pieces(tmp_path: Path) -> None:
    tensor = torch.randn(3, 2**20).T  # 12 MiB, not contiguous
    pieces = list(MemoryTensor(tensor, "BF16").chunks())
    assert max(len(piece) for piece in pieces) <= MIB
    assert len(list(MemoryTensor(tensor, "F32").chunks())) == 12
    written = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.bfloat16)
    assert torch.equal(written, tensor.bfloat16().reshape(-1))
    assert np.prod(tensor.shape) == len(written)
