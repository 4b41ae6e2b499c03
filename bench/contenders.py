"""The same model trained by Fusion's loop and by others, with a clock that reads after each step.

Shared by throughput.py, checkpoint_stall.py and gpu.py. CPU seconds are those of the process: on a machine that others
load too they say more than wall seconds do.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from fusion_core.growth_plan import GrowthPlan
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import CheckpointSaved, EngineRun, Evaluation, Metrics
from fusion_engine.batch import Batch
from fusion_engine.families import HEAD
from fusion_engine.grow import new_blocks
from fusion_engine.objective import LossFunction, next_token_loss
from fusion_engine.progress import Progress
from fusion_engine.train import Subject, Trainer
from transformers import Trainer as HuggingFaceTrainer
from transformers import TrainerCallback, TrainingArguments


@dataclass
class Clock:
    """(wall, CPU) seconds after each step, the checkpoints written, and how long training stood still for each.

    The last of `waits_s` is the end of the run, when there is no training left to do meanwhile.
    """

    steps: list[tuple[float, float]] = field(default_factory=list)
    checkpoints: list[CheckpointSaved] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)

    def tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append((time.perf_counter(), time.process_time()))

    def seconds_per_step(self, warmup: int) -> tuple[float, float]:
        """(wall, CPU), the first `warmup` steps left out."""
        (wall, cpu), (wall_end, cpu_end) = self.steps[warmup - 1], self.steps[-1]
        count = len(self.steps) - warmup
        return (wall_end - wall) / count, (cpu_end - cpu) / count


class _ClockedReporter:
    """Stands where Fusion's Reporter stands: reads the clock with each step's metrics, and asks nothing to stop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def emit(self, event: object) -> None:
        if isinstance(event, Metrics):
            self._clock.tick()
        elif isinstance(event, CheckpointSaved):
            self._clock.checkpoints.append(event)

    def agree(self, value: Any) -> Any:
        return value

    def requested_stop(self) -> None:
        return None


def new_parameters(model: Any, plan: GrowthPlan) -> dict[str, torch.nn.Parameter]:
    """Freeze all of a grown model but what `plan` added, as train_scope new does: in bf16 on a GPU."""
    prefixes = tuple(f"model.layers.{number}." for number in new_blocks(plan)) + ((HEAD,) if plan.own_head else ())
    on_gpu = next(model.parameters()).is_cuda
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
        if on_gpu and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_with_fusion(
    model: Any,
    parameters: dict[str, torch.nn.Parameter],
    rows: Any,
    hyperparams: Hyperparams,
    folder: Path,
    checkpoint_every_s: float = 1e9,
    loss_of: LossFunction = next_token_loss,
) -> Clock:
    """Train `parameters` of `model` by Fusion's own loop, its checkpoints in `folder`."""
    on_gpu = torch.cuda.is_available()
    accelerator, clock = Accelerator(cpu=not on_gpu, mixed_precision="bf16" if on_gpu else "no"), Clock()
    run = EngineRun(
        job_id="bench", lease_epoch=1, base_dir="", metrics_every_s=0.0, checkpoint_every_s=checkpoint_every_s
    )
    subject = Subject(
        model=model,
        parameters=parameters,
        rows=rows,
        loss_of=loss_of,
        measure=lambda _: Evaluation(step=0, turn=0, perplexity=1.0, tokens=1),
        identity="bench",
    )
    trainer = Trainer(folder, run, hyperparams, accelerator, _ClockedReporter(clock), subject, Progress())  # type: ignore[arg-type]  # clocked
    trainer.train()
    clock.waits_s = trainer.checkpoint_waits_s
    return clock


class _Ticks(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.tick()


def train_with_hugging_face(
    model: Any, dataset: Any, collate: Callable[..., Any] | None, hyperparams: Hyperparams, folder: Path, **extra: Any
) -> Clock:
    """Train all of `model` by transformers' Trainer with the same optimizer, clipping, precision and batch."""
    clock, on_gpu = Clock(), torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=hyperparams.total_steps,
        per_device_train_batch_size=hyperparams.batch_size,
        learning_rate=hyperparams.lr,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        max_grad_norm=hyperparams.max_grad_norm,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        report_to=[],
        save_strategy="no",
        logging_steps=10**9,
        disable_tqdm=True,
        **extra,
    )
    trainer = HuggingFaceTrainer(
        model=model, args=arguments, train_dataset=dataset, data_collator=collate, callbacks=[_Ticks(clock)]
    )
    trainer.train()
    return clock


@dataclass(frozen=True)
class RandomRows:
    """Rows of one document each, of random ids: for figures that do not depend on what is learned."""

    vocabulary: int
    seq_len: int

    def ids(self, number: int) -> "np.ndarray[Any, Any]":
        """The ids of row `number`, shape (seq_len + 1,)."""
        return np.random.default_rng(number).integers(2, self.vocabulary, self.seq_len + 1, dtype=np.int64)

    def batch(self, first: int, count: int, rank: int, ranks: int) -> Batch:
        ids = torch.from_numpy(np.stack([self.ids(first + place) for place in range(rank, count, ranks)]))
        positions = torch.arange(self.seq_len).expand(len(ids), -1)
        return Batch(ids[:, :-1], ids[:, 1:], positions, torch.zeros(len(ids), dtype=torch.bool))

    def examples(self, count: int) -> list[dict[str, torch.Tensor]]:
        """The same rows as Hugging Face's Trainer takes them."""
        rows = [torch.from_numpy(self.ids(number)[:-1]) for number in range(count)]
        return [{"input_ids": row, "labels": row} for row in rows]
