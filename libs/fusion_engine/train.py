"""The training loop of every kind of job: the step alone decides data and learning rate."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from fusion_core import failpoints
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import EngineRun, Evaluation, Metrics, Notice

from fusion_engine.accumulate import Accumulator, StepGradients
from fusion_engine.batch import Batch
from fusion_engine.checkpoint import CheckpointState, Parameters
from fusion_engine.gradients import update
from fusion_engine.memory import needs_activation_checkpointing
from fusion_engine.objective import LossFunction
from fusion_engine.optimizer import learning_rate, make_optimizer, set_rate
from fusion_engine.outcomes import RejectedError, StoppedError
from fusion_engine.progress import Progress
from fusion_engine.reporter import Reporter
from fusion_engine.reproducibility import random_states, restore_random_states
from fusion_engine.run_directory import CHECKPOINTS_FOLDER
from fusion_engine.sharding import Learner, wants_shards
from fusion_engine.training_state import TrainingState

_SKIPPED_STEPS_LIMIT, _ROLLBACKS_LIMIT, _ROLLBACK_RATE = 3, 2, 0.5
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
        self._run, self._hyperparams = run, hyperparams
        self._accelerator, self._reporter, self._subject = accelerator, reporter, subject
        self._model = subject.model
        self._learner = Learner(subject.model, accelerator.device, sharded=wants_shards(accelerator))
        self._parameters = self._learner.parameters_of(subject.parameters)
        self._optimizer = make_optimizer(self._parameters, hyperparams, subject.rate_scales)
        self._accumulator = Accumulator(
            accelerator,
            list(self._parameters.values()),
            self._loss,
            progress.micro_batch or hyperparams.batch_size,
            self._note_halved,
            self._recompute_activations,
            alone=not self._learner.sharded,
        )
        self._state = TrainingState(
            run_dir / CHECKPOINTS_FOLDER,
            subject.identity,
            hyperparams,
            self._parameters,
            self._optimizer,
            accelerator,
            reporter.emit,
        )
        self._recomputes = False
        self._saved_step = progress.step
        self._reported_step = progress.step
        self._reported_at = self._saved_at = time.monotonic()
        self.checkpoint_waits_s: list[float] = []  # how long training stood still for each, and for the last writing

    def resume(self, folder: Path, state: CheckpointState) -> None:
        """Go on as if never interrupted. Raises CheckpointError if a part is missing."""
        self._state.load(folder, state)

    def train(self) -> None:
        """Afterwards the subject's parameters are trained; where they were sharded, on the main process only.

        Raises StoppedError when control.json asks for it.
        Raises RejectedError: nonfinite_loss when the loss stays non-finite at lower rates too, out_of_memory.
        """
        try:
            self._train()
            self._state.gather_into(self._subject.parameters)
        finally:
            with self._standing_still():
                self._state.close()

    def _train(self) -> None:
        hyperparams = self._hyperparams
        if not self.progress.evaluations:
            self._evaluate(turn=0, cycle=0, turn_end=True)
        self._model.train()
        self._choose_activation_checkpointing()
        self._state.copy(self.progress)
        self._reported_at = self._saved_at = time.monotonic()
        while self.progress.step < hyperparams.total_steps:
            healthy = self._step()
            failpoints.hit("step")
            step = self.progress.step
            turn_end = step % hyperparams.steps_per_turn == 0
            if healthy and (turn_end or evaluation_due(hyperparams, step)):
                healthy = self._evaluate(hyperparams.turn_of(step), hyperparams.cycle_of(step), turn_end)
            if not healthy:
                self._roll_back()
            self._save_and_obey(healthy and turn_end)

    def _save_and_obey(self, turn_end: bool) -> None:
        """Save where it is time to. Raises StoppedError when control.json asks for it."""
        due = time.monotonic() - self._saved_at >= self._run.checkpoint_every_s and not self.progress.skipped_steps
        due, reason = self._reporter.agree((due, self._reporter.requested_stop()))
        if turn_end or due or reason in ("drain", "stop"):  # nobody resumes a cancelled job
            self._save(turn_end)
        if reason is not None:
            raise StoppedError(self.progress.step, reason)

    # -- one step ----------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """One update of the parameters that learn; a step without a finite loss changes nothing.

        False once too many steps in a row had none.
        """
        hyperparams, progress = self._hyperparams, self.progress
        progress.step += 1
        gradients = self._accumulator.step(progress.step, hyperparams)
        finite = isfinite(gradients.loss) and isfinite(gradients.norm)
        if finite:
            rate = learning_rate(hyperparams, progress.step) * _ROLLBACK_RATE**progress.rollbacks
            set_rate(self._optimizer, rate)
            clipped = max(1.0, gradients.norm / hyperparams.max_grad_norm)
            update(self._optimizer, torch.tensor(gradients.targets * clipped, device=self._accelerator.device))
            progress.record_loss(gradients.loss, hyperparams.total_steps)
            self._report(gradients, rate)
        self._optimizer.zero_grad()
        progress.skipped_steps = 0 if finite else progress.skipped_steps + 1
        return progress.skipped_steps < _SKIPPED_STEPS_LIMIT

    def _loss(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | int]:
        return self._loss_of(self._batch(first, count).trimmed())

    def _batch(self, first: int, count: int) -> Batch:
        return self._subject.rows.batch(first, count, self._accelerator.process_index, self._accelerator.num_processes)

    def _loss_of(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | int]:
        moved = batch.to(self._accelerator.device)
        with self._accelerator.autocast():
            return self._learner(lambda model: self._subject.loss_of(model, moved))  # type: ignore[no-any-return]  # any module

    def _note_halved(self, micro_batch: int) -> None:
        self.progress.micro_batch = micro_batch
        message = f"out of memory at step {self.progress.step}: now {micro_batch} rows at a time, with the same result"
        self._reporter.emit(Notice(code="micro_batch_halved", message=message))

    def _choose_activation_checkpointing(self) -> None:
        """Keep activations for the backward pass where they fit, compute them twice where not: the same bits."""
        device, ranks = self._accelerator.device, self._accelerator.num_processes
        states = random_states(device)
        rows = self._accumulator.micro_batch // ranks
        longest = self._batch(0, ranks)  # not trimmed: as long as any row can be
        needed = needs_activation_checkpointing(lambda: self._loss_of(longest)[0], rows, self._parameters, device)
        restore_random_states(states, device)
        if any(gather_object([needed])):
            self._recompute_activations()

    def _recompute_activations(self) -> bool:
        """Compute activations again in the backward pass from now on; False where that is done already."""
        if self._recomputes:
            return False
        self._recomputes = True
        model = self._model  # transformers renamed the method in 5.2x
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        message = "activations are computed again in the backward pass: keeping them takes too much memory"
        self._reporter.emit(Notice(code="activation_checkpointing", message=message))
        return True

    # -- loss that is not finite -------------------------------------------------------------------------------------

    def _roll_back(self) -> None:
        """Go back to the last checkpoint and on at a lower rate. Raises RejectedError after a few times."""
        progress = self.progress
        failed_step, rollbacks = progress.step, progress.rollbacks + 1
        if rollbacks > _ROLLBACKS_LIMIT:
            raise RejectedError(
                "nonfinite_loss",
                f"the loss or its gradient was not finite around step {failed_step}, nor was it at"
                f" {_ROLLBACK_RATE**_ROLLBACKS_LIMIT:g} of the rate; lower lr, or look at the data",
            )
        micro_batch = progress.micro_batch
        progress.go_back_to(self._state.restore_copy())
        progress.rollbacks, progress.skipped_steps, progress.micro_batch = rollbacks, 0, micro_batch
        self._reported_step = self._saved_step = progress.step
        message = (
            f"no finite loss around step {failed_step}: back to step {progress.step}, and on from there at"
            f" {_ROLLBACK_RATE**rollbacks:g} of the rate"
        )
        self._reporter.emit(Notice(code="rolled_back", message=message))

    # -- reports -----------------------------------------------------------------------------------------------------

    def _report(self, gradients: StepGradients, rate: float) -> None:
        step, now = self.progress.step, time.monotonic()
        elapsed = now - self._reported_at
        if elapsed < self._run.metrics_every_s and step % self._hyperparams.steps_per_turn != 0:
            return
        throughput = (step - self._reported_step) / max(elapsed, 1e-9)
        self._reporter.emit(
            Metrics(
                step=step,
                cycle=self._hyperparams.cycle_of(step),
                loss=gradients.loss,
                lr=rate,
                throughput=throughput,
                tokens_per_s=throughput * self._hyperparams.tokens_per_step,
                grad_norm=gradients.norm,
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

    def _evaluate(self, turn: int, cycle: int, turn_end: bool) -> bool:
        """Measure and report; False where the trained model's loss is not finite, which raises for the base's."""
        try:
            with self._outside_throughput(), self._learner.unsharded():
                measured = self._learner(self._subject.measure)
        except RejectedError as error:
            if error.code == "nonfinite_loss" and self.progress.step:
                return False
            raise
        place = {"turn": turn, "cycle": cycle, "turn_end": turn_end}
        evaluation = msgspec.structs.replace(measured, step=self.progress.step, **place)
        self.progress.evaluations.append(evaluation)
        self._reporter.emit(evaluation)
        return True

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        start = time.monotonic()
        with self._outside_throughput():
            yield
        self.checkpoint_waits_s.append(time.monotonic() - start)

    def _save(self, turn_end: bool) -> None:
        if self._saved_step == self.progress.step:
            return
        with self._standing_still():
            self._state.save(self.progress, turn_end=turn_end)
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()
