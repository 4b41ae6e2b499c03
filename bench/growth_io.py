"""Growth against the disk: streamed growth beside `cp` of as many bytes, and its peak memory beside loading the model.

    .venv/bin/python bench/growth_io.py [--layers 16] [--hidden 2048] [--repeats 3] [--folder DIR]

The base is a Llama of random bf16 weights, in shards; the shape of Llama 3.2 1B by default, 2.5 GB. Copies and growths
take turns, all from a warm page cache and all ended by fsync. Peak memory is that of a process of its own. Goals: no
slower than 1.5 times `cp`, and memory that does not follow the model's size.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from fusion_core.growth_plan import Axis, GrowthPlan, plan_growth
from fusion_engine.base_folder import open_base
from fusion_engine.grow import grow
from fusion_engine.safetensors_stream import MemoryTensor, TensorSource, write_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

# By name: the default, which gives a tied model a head of its own; layers alone; wider FFNs.
GROWTHS: dict[str, tuple[Axis, bool | None]] = {
    "depth and head": ("depth", None),
    "depth": ("depth", False),
    "width": ("width", None),
}
GOAL_RATIO = 1.5
SHARD_BYTES = 1_000_000_000
MIB = 1024 * 1024
# Each prints the peak memory, in KiB, of its imports and then of the whole process.
PEAK = "import re; peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
GROW_CHILD = f"""
{PEAK}
import sys, msgspec
from pathlib import Path
from fusion_core.growth_plan import GrowthPlan
from fusion_engine.base_folder import open_base
from fusion_engine.grow import grow
from transformers import LlamaForCausalLM
imports, plan = peak(), msgspec.json.decode(sys.argv[3], type=GrowthPlan)
grow(open_base(Path(sys.argv[1]), plan), plan, Path(sys.argv[2]))
print(imports, peak())
"""
LOAD_CHILD = f"""
{PEAK}
import sys
from transformers import AutoModelForCausalLM, LlamaForCausalLM
imports, model = peak(), AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", local_files_only=True)
total = sum(float(parameter.sum()) for parameter in model.parameters())
print(imports, peak())
"""


class RandomTensor(msgspec.Struct, frozen=True):
    """Random bf16 numbers, made as they are written."""

    shape: tuple[int, ...]
    dtype: str = "BF16"

    def chunks(self) -> list[bytes]:
        return list(MemoryTensor(torch.randn(self.shape) * 0.02, self.dtype).chunks())


def make_base(folder: Path, layers: int, hidden: int) -> Path:
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        vocab_size=128_256 if hidden >= 1024 else 8192,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tensors: dict[str, TensorSource] = {
        name: RandomTensor(tuple(parameter.shape)) for name, parameter in model.named_parameters()
    }
    folder.mkdir()
    write_model(folder, tensors, SHARD_BYTES)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["LlamaForCausalLM"]}))
    return folder


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def copy(source: Path, target: Path) -> None:
    """`cp` without sharing blocks, and fsync of what it wrote, as growth does."""
    subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def seconds(action: Callable[[Path], object], target: Path) -> float:
    os.sync()
    start = time.perf_counter()
    action(target)
    passed = time.perf_counter() - start
    shutil.rmtree(target)
    return passed


def peak_of(child: str, *arguments: str) -> tuple[float, float]:
    """(imports, everything) in MiB of a process that runs `child`."""
    command = [sys.executable, "-c", child, *arguments]
    output = subprocess.run(command, check=True, timeout=600, capture_output=True, text=True).stdout
    imports, whole = (int(number) / 1024 for number in output.split())
    return imports, whole


def compare(growth: str, base: Path, folder: Path, repeats: int) -> tuple[GrowthPlan, float, float, int]:
    """The plan, the median seconds of growth and of `cp` of the same bytes, and how many those are."""
    axis, own_head = GROWTHS[growth]
    plan = plan_growth(json.loads((base / "config.json").read_text()), axis=axis, own_head=own_head)
    opened, sample = open_base(base, plan), folder / "sample"
    grow(opened, plan, sample)
    grown, copied = [], []
    for _ in range(repeats):
        copied.append(seconds(lambda target: copy(sample, target), folder / "copied"))
        grown.append(seconds(lambda target: grow(opened, plan, target), folder / "grown"))
    size = weight_bytes(sample)
    shutil.rmtree(sample)
    return plan, statistics.median(grown), statistics.median(copied), size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048, help="a multiple of 64")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; needs about 6 times the base (a temporary one)")
    arguments = parser.parse_args()
    speed = Table("growth", "GB written", "growth s", "cp s", "growth GB/s", "growth / cp")
    memory = Table("process", "imports MiB", "peak MiB", "peak less imports MiB", "of the model's bytes")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        base = make_base(folder / "base", arguments.layers, arguments.hidden)
        ratios = []
        for growth in GROWTHS:
            plan, grown_s, copied_s, size = compare(growth, base, folder, arguments.repeats)
            ratios.append(grown_s / copied_s)
            figures = (size / 1e9, grown_s, copied_s, size / grown_s / 1e9, ratios[-1])
            speed.add_row(growth, *(f"{figure:.2f}" for figure in figures))
            peak = peak_of(GROW_CHILD, str(base), str(folder / "grown"), msgspec.json.encode(plan).decode())
            memory.add_row(f"growth, {growth}", *memory_cells(peak, weight_bytes(base)))
            shutil.rmtree(folder / "grown")
        memory.add_row("from_pretrained", *memory_cells(peak_of(LOAD_CHILD, str(base)), weight_bytes(base)))
    console = Console(width=120)
    console.print(speed, memory)
    verdict = "within" if max(ratios) <= GOAL_RATIO else "beyond"
    console.print(f"ratio: growth takes {max(ratios):.2f} times as long as cp, {verdict} the goal of {GOAL_RATIO}")


def memory_cells(peak: tuple[float, float], model_bytes: int) -> list[str]:
    imports, whole = peak
    own = whole - imports
    return [f"{imports:.0f}", f"{whole:.0f}", f"{own:.0f}", f"{100 * own * MIB / model_bytes:.1f} %"]


if __name__ == "__main__":
    main()
