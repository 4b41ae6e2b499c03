"""The rehearsal pool: text that a base model writes by itself at temperature 1.

It stands for the base's training data, which nobody needs to have: training on it against the base's own distribution
keeps what the base knew (self-distillation; measured in docs/results.md). Temperature 1 because the pool has to be the
base's distribution; a sharper one was never better. Made once for a base model and shared by all jobs on it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from fusion_core.trainer_protocol import SampleRun, ShardSaved
from numpy.typing import NDArray
from transformers import GenerationConfig

from fusion_engine.base_folder import BaseFolder, check_weights, load_model, open_base
from fusion_engine.files import build_manifest, complete_or_absent
from fusion_engine.model_config import check_seq_len
from fusion_engine.outcomes import RejectedError
from fusion_engine.reporter import Reporter
from fusion_engine.run_directory import POOL_FOLDER

POOL_FILE = "pool.jsonl"
ROWS_PER_BATCH = 32  # part of what a seed means: another number draws another pool


class PoolRow(msgspec.Struct):
    """One line of a pool file."""

    ids: list[int]


def sample_job(run_dir: Path, run: SampleRun, accelerator: Accelerator, reporter: Reporter) -> dict[str, object]:
    """Write the pool that run.json asks for and report it; returns the counts."""
    reporter.phase("preparing")
    base, folder = open_base(Path(run.base_dir)), run_dir / POOL_FOLDER
    check_weights(base)
    reporter.obey(0)
    write_pool(folder, base, run.rows, run.seq_len, run.seed, accelerator, reporter)
    if accelerator.is_main_process:
        file = build_manifest(folder).files[0]
        reporter.emit(ShardSaved(path=str(folder / POOL_FILE), split="train", rows=run.rows, file=file))
    return {"rows": run.rows, "tokens": run.rows * run.seq_len}


def write_pool(
    folder: Path, base: BaseFolder, rows: int, seq_len: int, seed: int, accelerator: Accelerator, reporter: Reporter
) -> None:
    """`folder`/pool.jsonl with `rows` sequences of `seq_len` ids; each process samples its share of the batches.

    The bytes depend on the model, the counts and the seed, and not on the number of processes.
    Raises RejectedError validation_failed when the sequences are longer than the model's positions.
    """
    check_seq_len(base.config, seq_len)
    dtype = torch.float32 if accelerator.device.type == "cpu" else None
    model = load_model(base.path, dtype).to(accelerator.device).eval()
    mine: list[tuple[int, NDArray[np.int32]]] = []
    for number in range(accelerator.process_index, math.ceil(rows / ROWS_PER_BATCH), accelerator.num_processes):
        reporter.phase("preparing", f"sampled {number * ROWS_PER_BATCH} of {rows} rows of the base's own text")
        count = min(ROWS_PER_BATCH, rows - number * ROWS_PER_BATCH)
        mine.append((number, sample_batch(model, start_id(base), count, seq_len, seed + number)))
    batches = sorted(gather_object(mine), key=lambda batch: int(batch[0]))
    if accelerator.is_local_main_process:  # every machine reads its own
        with complete_or_absent(folder) as partial, (partial / POOL_FILE).open("wb") as file:
            for _, batch in batches:
                file.writelines(msgspec.json.encode(PoolRow(row.tolist())) + b"\n" for row in batch)
    accelerator.wait_for_everyone()


def start_id(base: BaseFolder) -> int:
    """The id that a sequence of this model starts with: BOS, or the EOS that separates documents."""
    for key in ("bos_token_id", "eos_token_id"):
        value = base.config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    raise RejectedError("base_model_incomplete", "config.json names neither a BOS nor an EOS token to start text with")


@torch.no_grad()
def sample_batch(model: Any, first: int, count: int, seq_len: int, seed: int) -> NDArray[np.int32]:
    """`count` sequences of `seq_len` ids, the first of each being `first`; an EOS inside does not end a sequence."""
    torch.manual_seed(seed)
    start = torch.full((count, 1), first, dtype=torch.long, device=model.device)
    if seq_len > 1:
        for end in ("eos_token_id", "pad_token_id"):  # in the argument below None would mean "as the model has it"
            setattr(model.generation_config, end, None)
        everything = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=seq_len - 1,
            use_cache=True,
        )
        start = model.generate(start, attention_mask=torch.ones_like(start), generation_config=everything)
    return start.cpu().numpy().astype(np.int32)


def read_pool(files: tuple[str, ...]) -> Iterator[list[int]]:
    """The rows of pool files, in order. Raises msgspec.DecodeError for a line that is none."""
    decode = msgspec.json.Decoder(PoolRow).decode
    for path in files:
        with Path(path).open("rb") as lines:
            for line in lines:
                yield decode(line).ids
