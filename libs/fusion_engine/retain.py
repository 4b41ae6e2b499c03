"""`retain`: at export the weights go back part of the way to where they began; a slider between new and kept.

Every weight that learned becomes (1 - retain) * learned + retain * start. At 1.0 the model computes what its base
computes, since the new blocks' start is silent. Interpolating between a model and its fine-tuned self keeps more of the
old for little of the new (WiSE-FT, arXiv 2109.01903); what it gained here is in docs/results.md.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch
from fusion_core.trainer_protocol import Evaluation
from safetensors import safe_open

from fusion_engine.checkpoint import Parameters

_SHARES = (0.25, 0.5, 0.75)  # the curve's points, beside 0, which is the last evaluation, and 1, which is the base


class RetainPoint(msgspec.Struct, frozen=True):
    """Held-out and retention perplexity with `retain` of the way back to the start."""

    retain: float
    perplexity: float
    retention_perplexity: float | None


def retain_summary(share: float, points: Sequence[RetainPoint]) -> dict[str, object]:
    """What the curve adds to a job's result, and, where the job went back, what the exported weights measure."""
    summary: dict[str, object] = {"retain": share, "retain_curve": msgspec.to_builtins(points)}
    for point in points:
        if point.retain == share:
            summary["perplexity_after"] = point.perplexity
            summary["retention_perplexity_after"] = point.retention_perplexity
    return summary


@torch.no_grad()
def go_back(
    parameters: Parameters, start: Path, share: float, measure: Callable[[], Evaluation]
) -> tuple[RetainPoint, ...]:
    """Leave `parameters` at `share` of the way back to the model in the folder `start`; return the curve's points.

    On the way the model is measured at each of the curve's shares and at `share` itself, unless that is 0.
    """
    learned = {name: parameter.data.clone() for name, parameter in parameters.items()}
    points = []
    for point in sorted({*_SHARES, share} - {0.0}):
        _interpolate(parameters, learned, start, point)
        found = measure()
        points.append(RetainPoint(point, found.perplexity, found.retention_perplexity))
    if share:
        _interpolate(parameters, learned, start, share)
    else:
        for name, parameter in parameters.items():
            parameter.data.copy_(learned[name])
    return tuple(points)


def _interpolate(parameters: Parameters, learned: dict[str, torch.Tensor], start: Path, share: float) -> None:
    for file in sorted(start.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in set(tensors.keys()) & set(parameters):
                data = parameters[name].data
                torch.lerp(learned[name], tensors.get_tensor(name).to(data.device, data.dtype), share, out=data)
