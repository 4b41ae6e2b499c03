"""One job of the comparison, through the engine as a worker runs it, and what came out of it."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from fusion_core.growth_plan import GrowthPlan, plan_growth
from fusion_core.job_spec import FinetuneHyperparams, Hyperparams
from fusion_core.trainer_protocol import (
    Diagnosed,
    EventReader,
    FinetuneRun,
    Finished,
    TrainerEvent,
    TrainRun,
    write_run,
)
from fusion_engine.base_folder import load_model, load_tokenizer, open_base
from fusion_engine.evaluate import perplexity
from fusion_engine.packing import Row, pack
from fusion_engine.run import execute
from fusion_engine.tokenize_rows import RowTokenizer
from quality_base import SEQ_LEN, BenchBase
from quality_methods import Cell
from torch.utils.flop_counter import FlopCounterMode

DOMAINS = ("B", "A", "C")  # new; retained and rehearsed; retained and never rehearsed
_NEVER_S = 1e9


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`perplexity` by domain after the job; `turns` is that of B before it and after each turn."""

    perplexity: dict[str, float]
    turns: list[float]
    new_after: tuple[int, ...]
    cpu_s: float


def run_cell(cell: Cell, base: BenchBase) -> Outcome:
    """Train, export, load what was exported, and measure it on the three domains."""
    before = time.process_time()
    with _executed(cell, base) as (run_dir, events):
        cpu_s = time.process_time() - before
        finished = events[-1]
        if not isinstance(finished, Finished):
            raise RuntimeError(f"{cell.key}: {finished}")
        result: dict[str, Any] = finished.result
        diagnosed = [event.new_after for event in events if isinstance(event, Diagnosed)]
        return Outcome(
            perplexity=measure(load_model(run_dir / "export", torch.float32), base),
            turns=list(result["perplexity"].values()),
            new_after=diagnosed[0] if diagnosed else tuple(result.get("growth_plan", {}).get("new_after", ())),
            cpu_s=cpu_s,
        )


def flops_per_step(cell: Cell, base: BenchBase) -> float:
    """Arithmetic of one training step in the mean, as PyTorch counts it: two jobs, of which one has five steps more.

    Five steps of eight rows hold whole shares of rehearsal, and evaluations are the same in both.
    """
    counts = []
    for steps in (5, 10):
        short = msgspec.structs.replace(cell.hyperparams(), **_as_one_turn(cell, steps))
        with FlopCounterMode(display=False) as counter, _executed(cell, base, short):
            counts.append(counter.get_total_flops())
    return (counts[1] - counts[0]) / 5


def _as_one_turn(cell: Cell, steps: int) -> dict[str, Any]:
    if isinstance(cell.hyperparams(), FinetuneHyperparams):
        return {"steps": steps, "eval_every": steps}
    return {"train_steps": steps, "turns": 1}


@contextmanager
def _executed(
    cell: Cell, base: BenchBase, hyperparams: Hyperparams | FinetuneHyperparams | None = None
) -> Iterator[tuple[Path, list[TrainerEvent]]]:
    run_dir = Path(tempfile.mkdtemp(prefix="quality-"))
    try:
        write_run(run_dir, _run_of(cell, base, hyperparams or cell.hyperparams()))
        execute(run_dir)
        yield run_dir, [event for _, event in EventReader(run_dir).read()]
    finally:
        shutil.rmtree(run_dir)


def _run_of(cell: Cell, base: BenchBase, hyperparams: Hyperparams | FinetuneHyperparams) -> TrainRun | FinetuneRun:
    shared: dict[str, Any] = {
        "job_id": cell.key,
        "lease_epoch": 1,
        "base_dir": str(base.model),
        "train_shards": (str(base.rows("B", "train")),),
        "heldout_shards": (str(base.rows("B", "heldout")),),
        "pool_files": (str(base.pool),),
        "checkpoint_every_s": _NEVER_S,
        "metrics_every_s": _NEVER_S,
    }
    if isinstance(hyperparams, FinetuneHyperparams):
        return FinetuneRun(hyperparams=hyperparams, **shared)
    return TrainRun(hyperparams=hyperparams, growth_plan=_plan_of(hyperparams, base), **shared)


def _plan_of(hyperparams: Hyperparams, base: BenchBase) -> GrowthPlan:
    config = json.loads((base.model / "config.json").read_text())
    placement = "even" if hyperparams.growth_placement == "even" else "upper"  # as the API plans
    return plan_growth(
        config, growth_factor=hyperparams.growth_factor, placement=placement, own_head=hyperparams.own_head
    )


def measure_base(base: BenchBase) -> dict[str, float]:
    return measure(load_model(base.model, torch.float32), base)


def measure(model: Any, base: BenchBase) -> dict[str, float]:
    """Held-out perplexity of `model` on each domain."""
    return {
        domain: round(perplexity(model, rows, Accelerator(cpu=True))[0], 3) for domain, rows in _heldout(base).items()
    }


@cache
def _heldout(base: BenchBase) -> dict[str, list[Row]]:
    opened = open_base(base.model)
    tokenizer = load_tokenizer(opened)
    reader = RowTokenizer(tokenizer, tokenizer.eos_token_id, int(opened.config["vocab_size"]))
    found: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for domain in DOMAINS:
            documents = reader.documents([str(base.rows(domain, "heldout"))])
            rows = pack(documents, Path(folder), domain, SEQ_LEN, join=True)
            found[domain] = [rows.row(number) for number in range(len(rows))]
    return found
