"""The gradients of one step: those of its rows added up over micro-batches and processes, whatever fits into memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from fusion_core.job_spec import Hyperparams

from fusion_engine.gradients import gradient_norm, sum_over_processes
from fusion_engine.outcomes import RejectedError


@dataclass(frozen=True)
class StepGradients:
    """`loss` is the mean over the step's targets; the gradients lie in the parameters, summed and not yet divided."""

    loss: float
    norm: float  # of the mean gradient
    targets: float


class Accumulator:
    """Computes a step's gradients in micro-batches of `micro_batch` rows, counted over all processes.

    A micro-batch that does not fit into memory is halved, on every process, and the step starts again. Losses are sums,
    divided once by the targets of the whole step, so that the split changes nothing but the order of additions; and a
    row stays with its process. `compute(first, count)` returns this process's sum of losses, with its graph, and number
    of targets for rows `first` to `first + count`; `on_halved` hears of the new micro-batch; `spare_memory` is asked
    when one row is too much, and answers whether anything is left to try. `alone` says that no
    collective happens while a process computes, so that one that runs out of memory leaves none waiting.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        parameters: list[torch.nn.Parameter],
        compute: Callable[[int, int], tuple[torch.Tensor, torch.Tensor | int]],
        micro_batch: int,
        on_halved: Callable[[int], None],
        spare_memory: Callable[[], bool],
        *,
        alone: bool,
    ) -> None:
        self.micro_batch, self._alone = micro_batch, alone
        self._accelerator, self._parameters = accelerator, parameters
        self._compute, self._on_halved, self._spare_memory = compute, on_halved, spare_memory

    def step(self, step: int, hyperparams: Hyperparams) -> StepGradients:
        """The gradients of step `step` (from 1). Raises RejectedError out_of_memory where one row is too much."""
        rows = hyperparams.batch_size * hyperparams.gradient_accumulation
        while (sums := self._attempt((step - 1) * rows, rows)) is None:
            self._take_less()
        sum_over_processes(self._parameters, self._accelerator)
        loss, targets = sums
        return StepGradients(loss / targets, float(gradient_norm(self._parameters)) / targets, targets)

    def _attempt(self, first: int, rows: int) -> tuple[float, float] | None:
        """(sum of losses, targets) over all processes; None where any of them ran out of memory."""
        sums = torch.zeros(3, dtype=torch.float64, device=self._accelerator.device)
        try:
            for start in range(0, rows, self.micro_batch):
                loss, targets = self._compute(first + start, min(self.micro_batch, rows - start))
                loss.backward()  # type: ignore[no-untyped-call]
                sums[0] += loss.detach()
                sums[1] += targets
        except torch.OutOfMemoryError:
            if not self._alone:
                raise
            sums[2] = 1.0  # agreed upon below
        loss_sum, target_sum, out_of_memory = self._accelerator.reduce(sums, "sum").tolist()
        return None if out_of_memory else (loss_sum, target_sum)

    def _take_less(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        if self._accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        processes = self._accelerator.num_processes
        if self.micro_batch <= processes:
            if self._spare_memory():
                return
            raise RejectedError(
                "out_of_memory", "one row does not fit into the memory of this machine; lower seq_len or growth_factor"
            )
        self.micro_batch = max(1, self.micro_batch // processes // 2) * processes
        self._on_halved(self.micro_batch)
