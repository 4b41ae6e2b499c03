"""`retain`: at export the weights go back part of the way to where they began; a slider between new and kept.

Every weight that learned becomes (1 - retain) * learned + retain * start. At 1.0 the model computes what its base
computes, since the new blocks' start is silent. Interpolating between a model and its fine-tuned self keeps more of the
old for little of the new (WiSE-FT, arXiv 2109.01903); what it gained here is in docs/results.md.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch
from fusion_core.growth_plan import GrowthPlan
from fusion_core.trainer_protocol import Evaluation
from safetensors import safe_open

from fusion_engine.checkpoint import Parameters
from fusion_engine.families import Family
from fusion_engine.ffn_branches import whole_name
from fusion_engine.safetensors_stream import read_header

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


class Start:
    """The grown model before training, read tensor by tensor from its folder."""

    def __init__(self, folder: Path, family: Family, plan: GrowthPlan) -> None:
        self._family, self._old_channels = family, plan.ffn_before
        self._files = {name: file for file in sorted(folder.glob("*.safetensors")) for name in read_header(file)}

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor that the parameter `name` began as; a branch of a widened FFN began as a part of the whole."""
        stored, branch = whole_name(name, self._family)
        with safe_open(self._files[stored], framework="pt") as tensors:
            whole: torch.Tensor = tensors.get_tensor(stored)
        place = self._family.split(stored)
        dim = self._family.ffn_channels_dim(place[1]) if place is not None else None
        if branch is None or dim is None:
            return whole
        old, new = whole.tensor_split([self._old_channels], dim)
        return new if branch == "new" else old


@torch.no_grad()
def go_back(
    parameters: Parameters, start: Start, share: float, measure: Callable[[], Evaluation]
) -> tuple[RetainPoint, ...]:
    """Leave `parameters` at `share` of the way back to `start`; return the curve's points.

    On the way the model is measured at each of the curve's shares and at `share` itself, unless that is 0.
    """
    learned = {name: parameter.data.clone() for name, parameter in parameters.items()}
    points = []
    for point in sorted({*_SHARES, share} - {0.0}):
        _interpolate(parameters, learned, start, point)
        found = measure()
        points.append(RetainPoint(point, found.perplexity, found.retention_perplexity))
    _interpolate(parameters, learned, start, share)
    return tuple(points)


def _interpolate(parameters: Parameters, learned: dict[str, torch.Tensor], start: Start, share: float) -> None:
    for name, parameter in parameters.items():
        data = parameter.data
        if share == 0.0:  # to the bit, and without reading
            data.copy_(learned[name])
        else:
            torch.lerp(learned[name], start.tensor(name).to(data.device, data.dtype), share, out=data)
