"""Fusion's loop beside transformers' Trainer on one GPU, on models that need no network: `python bench/gpu.py`.

Randomly initialised Falcon-H1-1.5B and Llama-3.2-1B shapes, grown by the default, at batch 1 x 256 and 8 x 1024. Needs
torch, transformers, accelerate, safetensors, numpy and msgspec, and nothing else. Without a GPU it runs from end to end
at toy size, and its figures mean nothing.

    fusion new    only what was added learns, kernels deterministic: the default of a job
    fusion fast   the same with `deterministic: false`: what its ratio to the line above is, the default costs
    fusion deep   everything learns, deterministic
    trainer       everything learns, torch's own choice of kernels

    tokens/s    over wall seconds, the first steps left out
    MFU         model FLOPs / time / the GPU's dense bf16 peak; 6 a parameter and token where it learns, 4 where it is
                frozen above the first new layer, 2 below
    floor       the share of the step that reading and writing weights, gradients and moments once would take
    stall       what the first checkpoint makes training wait, in seconds, its page-locked memory included

Each contender is measured in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import RandomRows, new_parameters, train_with_fusion, train_with_hugging_face
from fusion_core.growth_plan import GrowthPlan, plan_growth
from fusion_core.job_spec import Hyperparams
from fusion_engine.families import HEAD
from fusion_engine.grow import new_blocks
from fusion_engine.reproducibility import make_deterministic
from transformers import AutoConfig, AutoModelForCausalLM

# Dense bf16 FLOP/s and memory bytes/s by NVIDIA's data sheets; others by --peak-tflops and --bandwidth-gb.
_GPUS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12), "L40S": (362e12, 0.864e12)}
_WARMUP = 5
MODELS: dict[str, dict[str, Any]] = {
    "falcon-h1-1.5b": {
        "architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1", "hidden_size": 2048,
        "intermediate_size": 4608, "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 128, "vocab_size": 65537, "mamba_d_ssm": 3072, "mamba_n_heads": 48, "mamba_d_head": 64,
        "mamba_d_state": 256, "mamba_n_groups": 1, "mamba_rms_norm": True, "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
    },
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 4096,
    },
}  # fmt: skip
_TOY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
_TOY |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512}
_TOY_SSM = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
SHAPES = ((1, 256), (8, 1024))
CONTENDERS = ("fusion new", "fusion fast", "fusion deep", "trainer")


@dataclass(frozen=True)
class Case:
    """One measurement: what is trained, by whom, in which shape."""

    model: str
    contender: str
    batch: int
    seq_len: int
    steps: int
    toy: bool


def grown(case: Case) -> tuple[Any, GrowthPlan]:
    """A random model in the shape that the default growth gives, on the device, in fp32."""
    config = dict(MODELS[case.model])
    if case.toy:
        config |= _TOY | (_TOY_SSM if config["model_type"] == "falcon_h1" else {})
    plan = plan_growth(config)
    settings = {name: value for name, value in config.items() if name not in ("architectures", "model_type")}
    settings["num_hidden_layers"] = plan.layers_after
    settings["tie_word_embeddings"] = config["tie_word_embeddings"] and not plan.own_head
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **settings))
    return model.float(), plan


def measure(case: Case) -> dict[str, float]:
    """Run one case in this process."""
    if case.contender != "trainer":
        make_deterministic(0, torch.get_num_threads(), kernels=case.contender != "fusion fast")
    model, plan = grown(case)
    half = case.steps // 2  # a checkpoint in the middle, one at the end
    hyperparams = Hyperparams(turns=2, cycles=1, train_steps=half, seq_len=case.seq_len, batch_size=case.batch)
    rows = RandomRows(model.config.vocab_size, case.seq_len)
    flops, floor_bytes = _work(model, plan, case)
    stall = 0.0
    with tempfile.TemporaryDirectory() as folder:
        if case.contender == "trainer":
            clock = train_with_hugging_face(
                model, rows.examples(case.steps * case.batch), None, hyperparams, Path(folder)
            )
        else:
            deep = case.contender == "fusion deep"
            parameters = dict(model.named_parameters()) if deep else new_parameters(model, plan)
            clock = train_with_fusion(model, parameters, rows, hyperparams, Path(folder))
            stall = clock.waits_s[0]
    wall, _ = clock.seconds_per_step(min(_WARMUP, case.steps - 1))
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    tokens = case.batch * case.seq_len
    return {"step_s": wall, "tokens_s": tokens / wall, "memory_gb": memory, "stall_s": stall} | {
        "flops": flops * tokens, "floor_bytes": floor_bytes,
    }  # fmt: skip


def _work(model: Any, plan: GrowthPlan, case: Case) -> tuple[float, float]:
    """(FLOPs a token, bytes a step that must move) of the parameters; attention's own products are left out."""
    blocks = new_blocks(plan)
    flops = moved = 0.0
    embedding = id(model.get_input_embeddings().weight)
    for name, parameter in model.named_parameters():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else plan.layers_after
        learns = case.contender in ("fusion deep", "trainer") or layer in blocks or (plan.own_head and name == HEAD)
        above = layer >= blocks[0]
        size = parameter.numel()
        if id(parameter) != embedding or model.config.tie_word_embeddings:
            flops += size * (6 if learns else 4 if above else 2)
        # bf16 reads in forward and backward; fp32 gradients, weights and two moments read and written by AdamW.
        moved += size * ((2 + 2) + 4 + 4 * 4 + 4 * 3 if learns else 4 if above else 2)
    return flops, moved


def in_own_process(case: Case) -> dict[str, float]:
    words = [sys.executable, __file__, "--case", json.dumps(case.__dict__)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=3600)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{case.model} {case.contender} {case.batch} x {case.seq_len}: {reason}", file=sys.stderr)
        return {}
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def describe(case: Case, found: dict[str, float], trainer: dict[str, float], peak: float, bandwidth: float) -> str:
    if not found:
        return f"| {case.model} | {case.batch} x {case.seq_len} | {case.contender} | failed | | | | | |"
    mfu = f"{found['flops'] / found['step_s'] / peak:.1%}" if peak else "-"
    floor = f"{found['floor_bytes'] / bandwidth / found['step_s']:.1%}" if bandwidth else "-"
    ratio = f"{found['tokens_s'] / trainer['tokens_s']:.2f}" if trainer else "-"
    memory, stall = f"{found['memory_gb']:.1f}", f"{found['stall_s']:.2f}"
    cells = [
        case.model,
        f"{case.batch} x {case.seq_len}",
        case.contender,
        f"{found['tokens_s']:,.0f}",
        ratio,
        mfu,
        floor,
    ]
    return f"| {' | '.join([*cells, memory, stall])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help=f"steps of each, {_WARMUP} not measured (%(default)s)")
    parser.add_argument("--toy", action="store_true", help="toy size; chosen by itself where there is no GPU")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak of a GPU that the script does not know")
    parser.add_argument("--bandwidth-gb", type=float, help="memory bandwidth of such a GPU, GB/s")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**json.loads(arguments.case)))))
        return
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else "no GPU: toy size, figures mean nothing"
    peak, bandwidth = next((figures for key, figures in _GPUS.items() if key in name), (0.0, 0.0))
    peak = arguments.peak_tflops * 1e12 if arguments.peak_tflops else peak
    bandwidth = arguments.bandwidth_gb * 1e9 if arguments.bandwidth_gb else bandwidth
    print(f"{name}; torch {torch.__version__}\n")
    print("| model | batch | contender | tokens/s | x Trainer | MFU | floor | peak GB | stall s |")
    print("|---|---|---|---|---|---|---|---|---|")
    toy, costs = arguments.toy or not on_gpu, []
    for model in arguments.models:
        for batch, seq_len in ((1, 32), (2, 64)) if toy else SHAPES:
            cases = [Case(model, contender, batch, seq_len, arguments.steps, toy) for contender in CONTENDERS]
            found = {case.contender: in_own_process(case) for case in cases}
            for case in cases:
                print(describe(case, found[case.contender], found["trainer"], peak, bandwidth), flush=True)
            exact, fast = found["fusion new"], found["fusion fast"]
            if exact and fast:
                costs.append(f"{model}, {batch} x {seq_len}: {exact['step_s'] / fast['step_s'] - 1:.1%}")
    print("\nWhat deterministic kernels cost, in step time: " + "; ".join(costs))


if __name__ == "__main__":
    main()
