"""What contraction costs and what healing wins back, through the engine's own code.

    .venv/bin/python bench/contraction.py [--steps 150] [--quick]

Three tables of held-out perplexities in three domains (quality_texts.py): A and C, which the base knows well, and B,
which it has read little of. The first compares ways to choose the FFN channels that stay, cut only, at three ratios;
the second, which layers they are taken from; the third takes whole contract jobs, before and after healing, each with
one thing changed. All text that is calibrated and healed on was sampled from the base. The base is the one of
bench/quality.py and made on first use.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from contraction_scores import BENCH_SCORES, ScoreInputs, gather
from fusion_core.contraction_plan import plan_contraction
from fusion_core.job_spec import ContractHyperparams
from fusion_core.trainer_protocol import ContractRun, Finished, write_run
from fusion_engine.base_folder import BaseFolder, load_model, open_base
from fusion_engine.evaluate import perplexity
from fusion_engine.importance import (
    best_channels,
    calibrate,
    channel_scores,
    choose_layers,
    down_projections,
    layer_damage,
    only_channels,
)
from fusion_engine.objective import next_token_loss
from fusion_engine.packing import Row, pack
from fusion_engine.run import execute
from fusion_engine.training_data import row_tokenizer
from fusion_local.demo.texts import write_rows
from quality_base import SEQ_LEN, BaseScale, BenchBase, prepare
from quality_texts import HELDOUT_EVERY, domains

FOLDER = Path(__file__).parents[1] / ".fusion"
DOMAINS, RATIOS = ("A", "B", "C"), (0.25, 0.5, 0.75)
HELDOUT_TOKENS, CALIBRATION_TOKENS, DAMAGE_ROWS = 12_288, 32_768, 64
HEALING_LR, HEALING_BATCH = 2e-3, 8
Scores = list[torch.Tensor]


@dataclass(frozen=True)
class Job:
    """A row of the third table: a contract job with one part of the engine replaced."""

    name: str
    ratio: float = 0.5
    importance: str = "flap"
    replaced: tuple[tuple[str, Any], ...] = ()


JOBS = (
    Job("the product's default"),
    Job("wanda", importance="wanda"),
    Job("no reconstruction", replaced=(("reconstruct", lambda *_: {}),)),
    Job("healed by next-token loss", replaced=(("distillation_from", lambda _: next_token_loss),)),
    Job("all weights heal", replaced=(("heals", lambda _: lambda _: True),)),
    Job("ratio .25", ratio=0.25),
    Job("ratio .75", ratio=0.75),
)


class Bench:
    """The base, rows of each domain that it has not read, and its perplexities on them."""

    def __init__(self, bench_base: BenchBase, work: Path) -> None:
        self.files, self.work = bench_base, work
        self.base: BaseFolder = open_base(bench_base.model)
        self._accelerator = Accelerator(cpu=True)
        rows = row_tokenizer(self.base)
        self._heldout: dict[str, list[Row]] = {}
        texts = domains()
        for domain in DOMAINS:
            shard = work / f"{domain}.jsonl"
            write_rows(shard, texts[domain][::HELDOUT_EVERY])
            packed = pack(rows.documents((str(shard),)), work, domain, SEQ_LEN, join=True)
            self._heldout[domain] = packed.spread(HELDOUT_TOKENS)
        sampled = pack(rows.documents((str(bench_base.sampled),)), work, "sampled", SEQ_LEN, join=True)
        self.calibration = sampled.spread(CALIBRATION_TOKENS)

    def perplexities(self, model: Any) -> list[float]:
        return [perplexity(model, self._heldout[domain], self._accelerator)[0] for domain in DOMAINS]


def scores_by_method(bench: Bench, model: Any) -> dict[str, Scores]:
    """The scores of every layer's channels: the engine's two, and those of bench/contraction_scores.py."""
    projections = down_projections(model, bench.base.family)
    found: dict[str, Scores] = {}
    inputs = [
        ScoreInputs(*pair) for pair in zip(projections, gather(model, projections, bench.calibration), strict=True)
    ]
    for name, score in BENCH_SCORES.items():
        found[name] = [score(each) for each in inputs]
    statistics = calibrate(model, bench.base.family, bench.calibration)
    for name in ("wanda", "flap"):
        found[name] = [
            channel_scores(name, each, module.weight) for each, module in zip(statistics, projections, strict=True)
        ]
    return found


@contextmanager
def cut(model: Any, bench: Bench, scores: Scores, ratio: float) -> Iterator[None]:
    """Inside, every layer of the model reads only its best channels."""
    width = plan_contraction(bench.base.config, ratio).ffn_after
    with ExitStack() as stack:
        for module, layer in zip(down_projections(model, bench.base.family), scores, strict=True):
            stack.enter_context(only_channels(module, best_channels(layer, width)))
        yield


def print_cuts(bench: Bench) -> None:
    """The first table, and how the engine's two choices compare with each other."""
    model = load_model(bench.base.path, torch.float32).eval()
    print(f"\nsource {shown(bench.perplexities(model))}\n")
    methods = scores_by_method(bench, model)
    print(f"| ratio | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
    for ratio in RATIOS:
        cells = []
        for scores in methods.values():
            with cut(model, bench, scores, ratio):
                cells.append(bench.perplexities(model))
        print(f"| {ratio} | {' | '.join(shown(cell) for cell in cells)} |", flush=True)
        by_name = dict(zip(methods, cells, strict=True))
        quotients = [one / other for one, other in zip(by_name["flap"], by_name["wanda"], strict=True)]
        print(f"|  | flap / wanda: {' / '.join(f'{quotient:.3f}' for quotient in quotients)} |", flush=True)


def print_layers(bench: Bench) -> None:
    """The second table: as many channels fewer, taken from half of the layers or from all."""
    model = load_model(bench.base.path, torch.float32).eval().requires_grad_(False)
    statistics = calibrate(model, bench.base.family, bench.calibration)
    projections = down_projections(model, bench.base.family)
    scores = [channel_scores("flap", *pair) for pair in zip(statistics, [p.weight for p in projections], strict=True)]
    halved = [best_channels(layer, len(layer) // 2) for layer in scores]
    damage = layer_damage(model, bench.base.family, halved, bench.calibration[:DAMAGE_ROWS])
    print(f"\ndamage of halving each layer alone, KL in nats: {', '.join(f'{value:.4f}' for value in damage)}\n")
    half = len(damage) // 2
    chosen = choose_layers(damage, half)
    choices = {
        "a quarter of every layer": {n: best_channels(s, len(s) * 3 // 4) for n, s in enumerate(scores)},
        f"half of layers {chosen}, the least damaged": {n: halved[n] for n in chosen},
        "half of the others": {n: halved[n] for n in range(len(damage)) if n not in chosen},
        "half of the first alone": {0: halved[0]},
    }
    print("| channels taken from | perplexity |\n|---|---|")
    for name, kept in choices.items():
        with ExitStack() as stack:
            for layer, channels in kept.items():
                stack.enter_context(only_channels(projections[layer], channels))
            print(f"| {name} | {shown(bench.perplexities(model))} |", flush=True)


def run_job(bench: Bench, job: Job, steps: int) -> tuple[dict[str, Any], list[float], list[float]]:
    """(public result, perplexities of the pruned model, of the healed one) of one contract job."""
    run_dir = bench.work / job.name.replace(" ", "-").replace("'", "")
    run_dir.mkdir()
    hyperparams = ContractHyperparams(
        contraction_ratio=job.ratio,
        train_steps=steps,
        importance=job.importance,  # type: ignore[arg-type]  # a str, checked by the spec
        lr=HEALING_LR,
        seq_len=SEQ_LEN,
        batch_size=HEALING_BATCH,
    )
    write_run(
        run_dir,
        ContractRun(
            job_id="bench",
            lease_epoch=1,
            base_dir=str(bench.base.path),
            pool_files=(str(bench.files.sampled),),
            hyperparams=hyperparams,
            contraction_plan=plan_contraction(bench.base.config, job.ratio),
            checkpoint_every_s=3600.0,
            threads=torch.get_num_threads(),
        ),
    )
    with ExitStack() as stack:
        for name, value in job.replaced:
            stack.enter_context(patch(f"fusion_engine.contract.{name}", value))
        outcome = execute(run_dir)
    assert isinstance(outcome, Finished), outcome
    pruned, healed = (
        bench.perplexities(load_model(run_dir / folder, torch.float32).eval()) for folder in ("contracted", "export")
    )
    shutil.rmtree(run_dir)
    return outcome.result, pruned, healed


def print_jobs(bench: Bench, steps: int) -> None:
    """The third table, and the ratios of each row to the first."""
    print("\n| job | parameters removed | pruned | healed | healed / default |\n|---|---|---|---|---|")
    default: list[float] = []
    for job in JOBS:
        result, pruned, healed = run_job(bench, job, steps)
        default = default or healed
        ratios = " / ".join(f"{one / other:.3f}" for one, other in zip(healed, default, strict=True))
        shrinkage = f"{result['achieved_shrinkage']:.1%}"
        print(f"| {job.name} | {shrinkage} | {shown(pruned)} | {shown(healed)} | {ratios} |", flush=True)


def shown(perplexities: list[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in perplexities)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="of healing, 8 rows of 128 ids each (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny, in two minutes; its figures mean nothing")
    arguments = parser.parse_args()
    scale = BaseScale(steps=60, pool_rows=64) if arguments.quick else BaseScale()
    base = prepare(FOLDER / ("quality-quick" if arguments.quick else "quality") / "base", scale)
    work = FOLDER / "contraction"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    started = time.monotonic()
    bench = Bench(base, work)
    print_cuts(bench)
    print_layers(bench)
    print_jobs(bench, 5 if arguments.quick else arguments.steps)
    print(
        f"\n{time.monotonic() - started:.0f} s, {torch.get_num_threads()} threads; perplexities {' / '.join(DOMAINS)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
