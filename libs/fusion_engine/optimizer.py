"""AdamW and the rate of each step: a pure function of the settings and the step, so that neither needs a state."""

import math
from collections.abc import Mapping

import torch
from fusion_core.job_spec import Hyperparams

from fusion_engine.checkpoint import Parameters

_BETAS = (0.9, 0.95)


def learning_rate(hyperparams: Hyperparams, step: int) -> float:
    """The rate of step `step` (from 1): linear warm-up, then one cosine over all turns that ends just above zero."""
    warmup = math.ceil(hyperparams.warmup * hyperparams.total_steps)
    if step <= warmup:
        return hyperparams.lr * step / warmup
    progress = (step - 1 - warmup) / (hyperparams.total_steps - warmup)
    return hyperparams.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(
    parameters: Parameters, hyperparams: Hyperparams, rate_scales: Mapping[str, float]
) -> torch.optim.AdamW:
    """AdamW (0.9, 0.95). Norms and biases are not decayed.

    `rate_scales` names the parameters that learn at another share of the rate than 1.0.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = hyperparams.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate_scales.get(name, 1.0), decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "weight_decay": decay, "rate_scale": scale} for (scale, decay), members in groups.items()],
        lr=hyperparams.lr,
        betas=_BETAS,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Make `rate`, times each group's own scale, the rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]
