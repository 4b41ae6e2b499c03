"""After the cut: down-projections whose remaining channels stand in for those that went, by least squares.

For each layer, with X the inputs of its down-projection over the calibration text and X_K those of the kept channels:

    W' = argmin ||X W^T - X_K W'^T||^2 + d ||W' - W[:, K]||^2

which needs only the Gram matrix X^T X. FLAP's bias (arXiv 2312.11983) makes up for the mean of what was cut and needs a
bias that most families do not have; this makes up for everything that the kept channels predict, in the weights that
are there anyway (the restoration of FASP, arXiv 2501.09412).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusion_engine.families import Family
from fusion_engine.importance import down_projections, watch_inputs
from fusion_engine.packing import Row

_GRAM_BYTES = 4 * 2**30  # of Gram matrices held at once; a model that needs more is passed over several times
# d, as a share of the mean square of a kept channel. 1e-3 gave the same perplexity; more pull guards wide FFNs, for
# which the calibration text has only a few tokens a channel.
_PULL = 1e-2


@torch.no_grad()
def reconstruct(
    model: Any, family: Family, kept: Sequence[torch.Tensor], rows: Sequence[Row]
) -> dict[str, torch.Tensor]:
    """The new down-projections by parameter name, each of shape (hidden, kept channels), fp32, on the CPU."""
    projections = down_projections(model, family)
    channels = projections[0].in_features
    at_once = max(1, _GRAM_BYTES // (8 * channels**2))
    solved: dict[str, torch.Tensor] = {}
    for first in range(0, len(projections), at_once):
        group = projections[first : first + at_once]
        for layer, gram in enumerate(_gram_matrices(model, group, rows), first):
            name = family.join(layer, f"{family.ffn}.down_proj.weight")
            solved[name] = _solve(gram, projections[layer].weight, kept[layer].to(gram.device))
    return solved


def _gram_matrices(model: Any, projections: Sequence[torch.nn.Linear], rows: Sequence[Row]) -> list[torch.Tensor]:
    grams = [
        torch.zeros(module.in_features, module.in_features, dtype=torch.float64, device=module.weight.device)
        for module in projections
    ]

    def into(gram: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def add(inputs: torch.Tensor) -> None:
            values = inputs.reshape(-1, len(gram)).double()
            gram.addmm_(values.T, values)

        return add

    watch_inputs(model, projections, rows, [into(gram) for gram in grams])
    return grams


def _solve(gram: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """W' of the module's text, from the normal equations."""
    full = weight.double()
    system = gram[kept][:, kept]
    # A channel that never fires has a zero row: the pull keeps the system solvable and its weights as they were.
    pull = _PULL * float(system.diagonal().mean()) or 1.0
    system = system + pull * torch.eye(len(kept), dtype=system.dtype, device=system.device)
    wanted = gram[kept] @ full.T + pull * full.T[kept]
    return torch.cholesky_solve(wanted, torch.linalg.cholesky(system)).T.float().cpu().contiguous()
