"""The training loop of every kind of job: the step alone decides data and learning rate."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from fusion_core import failpoints
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import CHECKPOINT_FORMAT_VERSION, CheckpointSaved, EngineRun, Evaluation, Metrics

from fusion_engine.batch import Batch
from fusion_engine.checkpoint import CheckpointState, Parameters, load_parameters, save_checkpoint
from fusion_engine.gradients import gradient_norm, sum_over_processes, update
from fusion_engine.objective import LossFunction
from fusion_engine.optimizer import learning_rate, make_optimizer, set_rate
from fusion_engine.outcomes import RejectedError, StoppedError
from fusion_engine.progress import Progress
from fusion_engine.reporter import Reporter
from fusion_engine.reproducibility import random_states, restore_random_states

CHECKPOINTS_FOLDER = "checkpoints"
_SKIPPED_STEPS_LIMIT = 3
_GIB = 2**30


def evaluation_due(hyperparams: Hyperparams, step: int) -> bool:
    """Is the model measured after `step`, beside the turns' ends: each `eval_every` steps, or at each cycle's end."""
    if hyperparams.eval_every is not None:
        return step % hyperparams.eval_every == 0
    return step == hyperparams.cycle_end(hyperparams.cycle_of(step))


class Rows(Protocol):
    """An endless sequence of training rows, the same for every number of processes."""

    def batch(self, first: int, count: int, rank: int, ranks: int) -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained, on what, and how it is measured.

    `parameters` are those of `model` that learn, by name, in fp32; `rate_scales` names the ones that learn at another
    share of the rate than 1.0. `measure` fills in an evaluation of the model (step, turn and cycle are the loop's).
    `identity` stands for the work that a checkpoint belongs to (`checkpoint.identity_of`).
    """

    model: Any
    parameters: Parameters
    rows: Rows
    loss_of: LossFunction
    measure: Callable[[Any], Evaluation]
    identity: str
    rate_scales: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """Trains from `progress` to the last step, reporting, evaluating and saving on the way.

    `run` says how often to save and report, nothing of which changes the result.
    """

    def __init__(
        self,
        run_dir: Path,
        run: EngineRun,
        hyperparams: Hyperparams,
        accelerator: Accelerator,
        reporter: Reporter,
        subject: Subject,
        progress: Progress,
    ) -> None:
        self.progress = progress
        self._run_dir, self._run, self._hyperparams = run_dir, run, hyperparams
        self._accelerator, self._reporter, self._subject = accelerator, reporter, subject
        self._model = subject.model.to(accelerator.device)  # not wrapped: gradients.py adds up over processes
        self._optimizer = make_optimizer(subject.parameters, hyperparams, subject.rate_scales)
        self._saved_step = progress.step
        self._saved_at = time.monotonic()
        self._reported_step, self._reported_at = progress.step, time.monotonic()

    def resume(self, folder: Path, state: CheckpointState) -> None:
        """Go on as if never interrupted. Raises CheckpointError if a part is missing."""
        load_parameters(folder, self._subject.parameters, self._optimizer)
        restore_random_states(state.random_states[self._accelerator.process_index], self._accelerator.device)

    def train(self) -> None:
        """Raises StoppedError when control.json asks for it, RejectedError when the loss stays non-finite."""
        progress, hyperparams = self.progress, self._hyperparams
        if not progress.evaluations:
            self._evaluate(turn=0, cycle=0, turn_end=True)
        self._model.train()
        self._reported_at = time.monotonic()
        while progress.step < hyperparams.total_steps:
            self._step()
            failpoints.hit("step")
            turn_end = progress.step % hyperparams.steps_per_turn == 0
            if turn_end or evaluation_due(hyperparams, progress.step):
                self._evaluate(hyperparams.turn_of(progress.step), hyperparams.cycle_of(progress.step), turn_end)
            due = time.monotonic() - self._saved_at >= self._run.checkpoint_every_s
            due, reason = self._reporter.agree((due, self._reporter.requested_stop()))
            if turn_end or due or reason in ("drain", "stop"):  # nobody resumes a cancelled job
                self._save(turn_end)
            if reason is not None:
                raise StoppedError(progress.step, reason)

    def _step(self) -> None:
        """One update of the parameters that learn; a step without a finite loss changes nothing."""
        hyperparams, progress = self._hyperparams, self.progress
        progress.step += 1
        loss, norm, targets = self._gradients()
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            rate = learning_rate(hyperparams, progress.step)
            set_rate(self._optimizer, rate)
            clipped = max(1.0, norm / hyperparams.max_grad_norm)
            update(self._optimizer, torch.tensor(targets * clipped, device=self._accelerator.device))
            progress.skipped_steps = 0
            progress.record_loss(loss, hyperparams.total_steps)
            self._report(loss, rate, norm)
        self._optimizer.zero_grad()
        if not finite:
            self._count_skipped(loss, norm)

    def _gradients(self) -> tuple[float, float, float]:
        """Add up the gradients of the step's rows; return (mean loss, norm of the mean gradient, targets)."""
        accelerator, hyperparams = self._accelerator, self._hyperparams
        first = (self.progress.step - 1) * hyperparams.batch_size * hyperparams.gradient_accumulation
        sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        for number in range(hyperparams.gradient_accumulation):
            start = first + number * hyperparams.batch_size
            rank, ranks = accelerator.process_index, accelerator.num_processes
            batch = self._subject.rows.batch(start, hyperparams.batch_size, rank, ranks)
            with accelerator.autocast():
                loss, targets = self._subject.loss_of(self._model, batch.to(accelerator.device))
            accelerator.backward(loss)
            sums[0] += loss.detach()
            sums[1] += targets
        parameters = self._subject.parameters.values()
        sum_over_processes(parameters, accelerator)
        total, targets_in_all = accelerator.reduce(sums, "sum").tolist()
        return total / targets_in_all, float(gradient_norm(parameters)) / targets_in_all, targets_in_all

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

    def _evaluate(self, turn: int, cycle: int, turn_end: bool) -> None:
        with self._outside_throughput():
            measured = self._subject.measure(self._model)
        place = {"turn": turn, "cycle": cycle, "turn_end": turn_end}
        evaluation = msgspec.structs.replace(measured, step=self.progress.step, **place)
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
        step = self.progress.step
        state = CheckpointState(
            format_version=CHECKPOINT_FORMAT_VERSION,
            identity=self._subject.identity,
            hyperparams=self._hyperparams,
            world_size=self._accelerator.num_processes,
            progress=self.progress,
            random_states=states,
        )
        folder = self._run_dir / CHECKPOINTS_FOLDER / f"{step:08}"
        manifest = save_checkpoint(folder, state, self._subject.parameters, self._optimizer)
        self._reporter.emit(CheckpointSaved(step=step, turn_end=turn_end, path=str(folder), manifest=manifest))
