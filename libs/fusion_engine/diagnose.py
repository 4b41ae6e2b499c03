"""Where the base is short of capacity: what a new group of blocks after each old one would gain, to first order.

A silenced copy of every group is put after it, all at once, and the customer's rows are passed through: nothing
changes, but the projections that were zeroed have gradients. A gradient's sum of absolute values is how fast the loss
falls under Adam's first steps, which move every weight by the rate (new capacity by the gradient it would get: GradMax,
arXiv 2201.05125, and Firefly, arXiv 2102.08574). No weight is copied; beside the frozen base there are the gradients in
fp32, and the time is that of some thirty rows.

What a place gains is held against what it costs: training reaches down to the lowest new block and no further.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from fusion_core.growth_plan import GrowthPlan, place
from fusion_core.trainer_protocol import Diagnosed, TrainRun
from torch import Tensor

from fusion_engine.base_folder import BaseFolder, load_model
from fusion_engine.batch import Batch, collate
from fusion_engine.data_order import TrainingRows
from fusion_engine.families import Family
from fusion_engine.objective import next_token_loss
from fusion_engine.precision import compute_dtype
from fusion_engine.reporter import Reporter

DIAGNOSED_ROWS, DIAGNOSED_POSITIONS = 32, 512
_FORWARD, _BACKWARD_THROUGH, _BACKWARD_INTO = 1.0, 1.0, 2.0  # a block's work in a step, relative


def diagnosed_plan(
    run: TrainRun, base: BaseFolder, rows: TrainingRows, accelerator: Accelerator, reporter: Reporter
) -> GrowthPlan:
    """The job's plan, its new blocks where the diagnosis puts them if the job asks for that; the same on every rank."""
    plan = run.growth_plan
    if run.hyperparams.growth_placement != "diagnosed" or plan.axis != "depth" or not plan.new_after:
        return plan
    reporter.phase("diagnosing")
    answer: list[tuple[float, ...]] = [()]
    if accelerator.is_main_process:
        dtype = compute_dtype(run.hyperparams.precision, accelerator.device.type == "cpu")
        model = load_model(base.path, dtype).to(accelerator.device)
        answer = [diagnose(model, base.family, plan, [batch.to(accelerator.device) for batch in _batches(rows)])]
    scores = broadcast_object_list(answer)[0]
    placed = place_by_gain(plan, scores)
    by_block = tuple(scores[min(block // plan.group, len(scores) - 1)] for block in range(plan.layers_before))
    reporter.emit(Diagnosed(scores=by_block, new_after=placed.new_after))
    return placed


def _batches(rows: TrainingRows) -> Iterator[Batch]:
    """The first rows of the customer's that training will see, one a batch and cut to DIAGNOSED_POSITIONS."""
    length = min(rows.seq_len, DIAGNOSED_POSITIONS)
    own = (row for row, sampled in map(rows.row, count()) if not sampled)
    for row in islice(own, DIAGNOSED_ROWS):
        whole = collate([row], rows.seq_len)
        yield Batch(
            whole.input_ids[:, :length], whole.labels[:, :length], whole.position_ids[:, :length], whole.rehearsed
        )


def diagnose(model: Any, family: Family, plan: GrowthPlan, batches: Sequence[Batch]) -> tuple[float, ...]:
    """A score for each group of the base's blocks, larger where new capacity would lower the loss faster.

    `model` is the base, on its device; it is frozen here and otherwise left as it was.
    """
    model.eval().requires_grad_(False)
    probes = [_Probe(model, family, plan, group) for group in range(plan.groups_before)]
    targets = 0
    with _attached(probes):
        for batch in batches:
            loss, trained = next_token_loss(model, batch)
            torch.autograd.backward(loss)
            targets += int(trained)
            for probe in probes:
                probe.collect()
    return tuple(probe.score(targets) for probe in probes)


def place_by_gain(plan: GrowthPlan, scores: Sequence[float]) -> GrowthPlan:
    """The plan with its new groups where they gain most for what a step then costs.

    Above each possible lowest place, groups go one by one where the score is highest, and a place's next group counts
    an equal share less (D'Hondt: half, a third, ...); of these the choice is the one with the largest sum of gains over
    the arithmetic of a step.
    """
    best: tuple[float, list[int]] | None = None
    for lowest in range(plan.groups_before):
        gains = [(scores[g] / n, g) for g in range(lowest, plan.groups_before) for n in range(1, plan.groups_added + 1)]
        chosen = sorted(gains, key=lambda gain: (-gain[0], -gain[1]))[: plan.groups_added]
        groups = sorted(group for _, group in chosen)
        value = sum(gain for gain, _ in chosen) / _work(plan, min(groups))
        if best is None or value > best[0]:
            best = (value, groups)
    return plan if best is None else place(plan, best[1])


def _work(plan: GrowthPlan, lowest: int) -> float:
    """A step's arithmetic, in forward passes of a group, when the first new group follows group `lowest`."""
    old, new = plan.groups_before, plan.groups_added
    return _FORWARD * (old + new) + _BACKWARD_INTO * new + _BACKWARD_THROUGH * (old - 1 - lowest)


class _Probe:
    """The silenced copy of one group, on top of it: the same modules with other tensors for what writes."""

    def __init__(self, model: Any, family: Family, plan: GrowthPlan, group: int) -> None:
        stack = model.get_decoder().layers
        self._blocks = [stack[group * plan.group + number] for number in range(plan.group)]
        self._inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {})] * plan.group
        self._silent = [
            {
                name: torch.zeros_like(parameter).requires_grad_()
                for name, parameter in block.named_parameters()
                if family.writes_residual(name)
            }
            for block in self._blocks
        ]
        self._sums = [{name: torch.zeros_like(t, dtype=torch.float32) for name, t in s.items()} for s in self._silent]
        self._inside = False

    def attach(self) -> list[Any]:
        """Hooks that remember how each block was called, and pass the last one's output through the copies."""

        def hook(number: int) -> Any:
            def run(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                if self._inside:
                    return output
                self._inputs[number] = (args[1:], kwargs)
                return self._probed(output) if number == len(self._blocks) - 1 else output

            return run

        return [
            block.register_forward_hook(hook(number), with_kwargs=True) for number, block in enumerate(self._blocks)
        ]

    def _probed(self, output: Any) -> Any:
        self._inside = True
        for block, silent, (args, kwargs) in zip(self._blocks, self._silent, self._inputs, strict=True):
            hidden = output[0] if isinstance(output, tuple) else output
            output = torch.func.functional_call(block, silent, (hidden, *args), kwargs)
        self._inside = False
        return output

    def collect(self) -> None:
        """Take the gradients of one batch over into the sums."""
        for silent, sums in zip(self._silent, self._sums, strict=True):
            for name, tensor in silent.items():
                sums[name] += _taken(tensor)

    def score(self, targets: int) -> float:
        return sum(float(total.abs().sum()) for sums in self._sums for total in sums.values()) / targets


def _taken(tensor: Tensor) -> Tensor:
    gradient = tensor.grad
    assert gradient is not None, "every block takes part in the loss"
    tensor.grad = None
    return gradient


@contextmanager
def _attached(probes: Sequence[_Probe]) -> Iterator[None]:
    hooks = [hook for probe in probes for hook in probe.attach()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
