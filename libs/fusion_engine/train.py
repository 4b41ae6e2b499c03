"""The training loop: the base is frozen, the new blocks learn, and the step alone decides data and learning rate."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from accelerate import Accelerator
from accelerate.utils import gather_object
from fusion_core import failpoints
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import CHECKPOINT_FORMAT_VERSION, CheckpointSaved, Evaluation, Metrics, TrainRun
from numpy.typing import NDArray

from fusion_engine.checkpoint import CheckpointState, Parameters, load_parameters, save_checkpoint
from fusion_engine.data_order import TrainingRows
from fusion_engine.evaluate import perplexity
from fusion_engine.outcomes import RejectedError, StoppedError
from fusion_engine.reporter import Reporter
from fusion_engine.reproducibility import random_states, restore_random_states

CHECKPOINTS_FOLDER = "checkpoints"
_SKIPPED_STEPS_LIMIT = 3
_GIB = 2**30


def learning_rate(hyperparams: Hyperparams, step: int) -> float:
    """The rate of step `step` (from 1): linear warm-up, then one cosine over all turns that ends just above zero."""
    warmup = math.ceil(hyperparams.warmup * hyperparams.total_steps)
    if step <= warmup:
        return hyperparams.lr * step / warmup
    progress = (step - 1 - warmup) / (hyperparams.total_steps - warmup)
    return hyperparams.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(parameters: Parameters, hyperparams: Hyperparams) -> torch.optim.AdamW:
    """AdamW (0.9, 0.95); norms and biases are not decayed."""
    decayed = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    plain = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": hyperparams.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=hyperparams.lr, betas=(0.9, 0.95), fused=True)


@dataclass
class Progress:
    """How far training is: all that a checkpoint holds beside tensors and random states."""

    function_preservation: float
    step: int = 0
    skipped_steps: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)

    @classmethod
    def of(cls, state: CheckpointState) -> "Progress":
        return cls(state.function_preservation, state.step, state.skipped_steps, list(state.evaluations))


class Trainer:
    """Trains `parameters` of `model` from `progress` to the last step, reporting, evaluating and saving on the way."""

    def __init__(
        self,
        run_dir: Path,
        run: TrainRun,
        accelerator: Accelerator,
        reporter: Reporter,
        model: Any,
        parameters: Parameters,
        rows: TrainingRows,
        heldout: list[NDArray[np.int32]],
        progress: Progress,
    ) -> None:
        self.progress = progress
        self._run_dir, self._run, self._hyperparams = run_dir, run, run.hyperparams
        self._accelerator, self._reporter = accelerator, reporter
        self._parameters, self._rows, self._heldout = parameters, rows, heldout
        self._model = accelerator.prepare_model(model)
        self._optimizer = make_optimizer(parameters, run.hyperparams)
        self._saved_step = progress.step
        self._saved_at = time.monotonic()
        self._reported_step, self._reported_at = progress.step, time.monotonic()

    def resume(self, folder: Path, state: CheckpointState) -> None:
        """Go on as if never interrupted. Raises CheckpointError if a part is missing."""
        load_parameters(folder, self._parameters, self._optimizer)
        restore_random_states(state.random_states[self._accelerator.process_index], self._accelerator.device)

    def train(self) -> None:
        """Raises StoppedError when control.json asks for it, RejectedError when the loss stays non-finite."""
        progress, hyperparams = self.progress, self._hyperparams
        if not progress.evaluations:
            self._evaluate(turn=0)
        self._model.train()
        self._reported_at = time.monotonic()
        while progress.step < hyperparams.total_steps:
            self._step()
            failpoints.hit("step")
            turn_end = progress.step % hyperparams.steps_per_turn == 0
            if turn_end:
                self._evaluate(hyperparams.turn_of(progress.step))
            due = time.monotonic() - self._saved_at >= self._run.checkpoint_every_s
            due, reason = self._reporter.agree((due, self._reporter.requested_stop()))
            if turn_end or due or reason in ("drain", "stop"):  # nobody resumes a cancelled job
                self._save(turn_end)
            if reason is not None:
                raise StoppedError(progress.step, reason)

    def _step(self) -> None:
        """One update of the new parameters; a step without a finite loss changes nothing."""
        accelerator, hyperparams, progress = self._accelerator, self._hyperparams, self.progress
        progress.step += 1
        rate = learning_rate(hyperparams, progress.step)
        first = (progress.step - 1) * hyperparams.batch_size
        rows = self._rows.batch(first, hyperparams.batch_size, accelerator.process_index, accelerator.num_processes)
        batch = torch.from_numpy(rows).to(accelerator.device)
        logits = self._model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].reshape(-1))
        accelerator.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), hyperparams.max_grad_norm)
        mean_loss, grad_norm = float(accelerator.reduce(loss.detach(), "mean")), float(norm)
        finite = math.isfinite(mean_loss) and math.isfinite(grad_norm)
        if finite:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
            progress.skipped_steps = 0
            self._report(mean_loss, rate, grad_norm)
        self._optimizer.zero_grad()
        if not finite:
            self._count_skipped(mean_loss, grad_norm)

    def _count_skipped(self, loss: float, grad_norm: float) -> None:
        self.progress.skipped_steps += 1
        if self.progress.skipped_steps == _SKIPPED_STEPS_LIMIT:
            raise RejectedError(
                "nonfinite_loss",
                f"loss {loss} and gradient norm {grad_norm} at step {self.progress.step}, the third such step in a row;"
                " lower lr, or look at the data",
            )

    def _report(self, loss: float, rate: float, grad_norm: float) -> None:
        step, now = self.progress.step, time.monotonic()
        elapsed = now - self._reported_at
        if elapsed < self._run.metrics_every_s and step % self._hyperparams.steps_per_turn != 0:
            return
        throughput = (step - self._reported_step) / max(elapsed, 1e-9)
        self._reporter.emit(
            Metrics(
                step=step,
                cycle=self._hyperparams.cycle_of(step),
                loss=loss,
                lr=rate,
                throughput=throughput,
                tokens_per_s=throughput * self._hyperparams.tokens_per_step,
                grad_norm=grad_norm,
                vram_gb=self._peak_memory_gb(),
            )
        )
        self._reported_step, self._reported_at = step, now

    def _peak_memory_gb(self) -> float:
        device = self._accelerator.device
        return torch.cuda.max_memory_allocated(device) / _GIB if device.type == "cuda" else 0.0

    @contextmanager
    def _outside_throughput(self) -> Iterator[None]:
        """Time spent inside does not count as training time in the metrics."""
        start = time.monotonic()
        yield
        self._reported_at += time.monotonic() - start

    def _evaluate(self, turn: int) -> None:
        with self._outside_throughput():
            model = self._accelerator.unwrap_model(self._model)
            value, tokens = perplexity(model, self._heldout, self._accelerator)
        evaluation = Evaluation(step=self.progress.step, turn=turn, perplexity=value, tokens=tokens)
        self.progress.evaluations.append(evaluation)
        self._reporter.emit(evaluation)

    def _save(self, turn_end: bool) -> None:
        if self._saved_step == self.progress.step:
            return
        with self._outside_throughput():
            states = gather_object([random_states(self._accelerator.device)])
            if self._accelerator.is_main_process:
                self._write_checkpoint(tuple(states), turn_end)
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()

    def _write_checkpoint(self, states: tuple[dict[str, Any], ...], turn_end: bool) -> None:
        progress = self.progress
        state = CheckpointState(
            format_version=CHECKPOINT_FORMAT_VERSION,
            plan_sha256=self._run.growth_plan.sha256(),
            hyperparams=self._hyperparams,
            world_size=self._accelerator.num_processes,
            step=progress.step,
            skipped_steps=progress.skipped_steps,
            function_preservation=progress.function_preservation,
            evaluations=tuple(progress.evaluations),
            random_states=states,
        )
        folder = self._run_dir / CHECKPOINTS_FOLDER / f"{progress.step:08}"
        manifest = save_checkpoint(folder, state, self._parameters, self._optimizer)
        self._reporter.emit(CheckpointSaved(step=progress.step, turn_end=turn_end, path=str(folder), manifest=manifest))
