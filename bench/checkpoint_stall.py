"""How long training waits for checkpoints: `python bench/checkpoint_stall.py [--steps N] [--every S]`.

A Llama of 32M parameters learns in all of its weights, so that a checkpoint is as large as it can be for its steps:
fp32 weights and two moments. Fusion's loop copies them and goes on; beside it stands what the same checkpoints take
when training waits until they are on disk. Goal: under 1 % of wall time at the product's interval of 120 s.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from contenders import RandomRows, train_with_fusion
from fusion_core.job_spec import Hyperparams
from fusion_engine import checkpoint_writer
from transformers import LlamaConfig, LlamaForCausalLM

PRODUCT_INTERVAL_S = 120.0


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimizer updates (%(default)s)")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between checkpoints (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    writing: list[float] = []
    write = checkpoint_writer.write_checkpoint

    def timed(*given: object) -> object:
        start = time.perf_counter()
        manifest = write(*given)  # type: ignore[arg-type]  # given as they came
        writing.append(time.perf_counter() - start)
        return manifest

    checkpoint_writer.write_checkpoint = timed  # type: ignore[assignment]  # a clock around the real one
    settings = Hyperparams(cycles=1, train_steps=arguments.steps, seq_len=128, batch_size=2)
    llama = model()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        clock = train_with_fusion(
            llama, dict(llama.named_parameters()), RandomRows(8192, 128), settings, Path(folder), arguments.every
        )
        wall = time.perf_counter() - start
    *waits, end = clock.waits_s
    count, size = len(waits), clock.checkpoints[-1].manifest.size
    print(f"{count} checkpoints of {size / 1e6:.0f} MB in {wall:.0f} s, {arguments.steps} steps\n")
    print("| checkpoints | wait for each | share of this run | share at one in 120 s |")
    print("|---|---|---|---|")
    behind = sum(waits)
    for name, waited in (("behind training's back", behind), ("waiting for the disk", behind + sum(writing))):
        mean = waited / count
        print(f"| {name} | {mean:.3f} s | {waited / wall:.2%} | {mean / PRODUCT_INTERVAL_S:.3%} |")
    print(
        f"\nratio of the waits: {behind / (behind + sum(writing)):.3f}; at the end, with no training left, {end:.2f} s"
    )


if __name__ == "__main__":
    main()
