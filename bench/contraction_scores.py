"""Ways to score FFN channels that the engine does not offer, for bench/contraction.py to compare with those it does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fusion_engine.importance import batches
from fusion_engine.packing import Row


@dataclass
class Gathered:
    """Of one layer over the calibration text: sum of |x_j|, and of |x_j * dL/dx_j|, by channel."""

    absolute: torch.Tensor
    taylor: torch.Tensor


@dataclass(frozen=True)
class ScoreInputs:
    """A layer's down-projection, and what was gathered of its inputs."""

    module: torch.nn.Linear
    gathered: Gathered


def gather(model: Any, projections: Sequence[torch.nn.Linear], rows: Sequence[Row]) -> list[Gathered]:
    """One pass forward and backward over the rows, with next-token loss."""
    found = [Gathered(*torch.zeros(2, module.in_features, dtype=torch.float64)) for module in projections]

    def watch(module: torch.nn.Linear, into: Gathered) -> Any:
        def look(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0]
            into.absolute += values.detach().abs().flatten(0, -2).sum(0).double()
            values.register_hook(lambda gradient: add(values.detach(), gradient))

        def add(values: torch.Tensor, gradient: torch.Tensor) -> None:
            into.taylor.add_((values * gradient).abs().flatten(0, -2).sum(0).double())

        return module.register_forward_pre_hook(look)

    handles = [watch(module, into) for module, into in zip(projections, found, strict=True)]
    for inputs in batches(rows, model.device, tokens=1024):
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return found


def _random(inputs: ScoreInputs) -> torch.Tensor:
    return torch.rand(inputs.module.in_features, generator=torch.Generator().manual_seed(0))


def _magnitude(inputs: ScoreInputs) -> torch.Tensor:
    return inputs.module.weight.detach().square().sum(0)


def _minitron(inputs: ScoreInputs) -> torch.Tensor:
    """Mean absolute activation (Muralidharan et al., arXiv 2407.14679)."""
    return inputs.gathered.absolute


def _taylor(inputs: ScoreInputs) -> torch.Tensor:
    """First-order estimate of the loss without the channel (Molchanov et al., arXiv 1906.10771)."""
    return inputs.gathered.taylor


BENCH_SCORES: dict[str, Callable[[ScoreInputs], torch.Tensor]] = {
    "random": _random,
    "magnitude": _magnitude,
    "Minitron": _minitron,
    "Taylor": _taylor,
}
