"""Which parameters of a grown model learn, and at which share of the rate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fusion_core.growth_plan import GrowthPlan
from fusion_core.job_spec import Hyperparams

from fusion_engine.base_folder import load_model
from fusion_engine.checkpoint import Parameters
from fusion_engine.families import HEAD, Family
from fusion_engine.ffn_branches import is_spare_bias, split_ffns, whole_name
from fusion_engine.grow import new_blocks

HEAD_LR_SCALE = 0.25  # it does not begin silent, so it can be broken; a tenth learns less, measured in docs/results.md


@dataclass(frozen=True)
class Trainable:
    """A model, those of its parameters that learn, by name, and the ones that learn at another share than 1.0."""

    model: Any
    parameters: Parameters
    rate_scales: Mapping[str, float]


def load_grown(
    folder: Path, plan: GrowthPlan, hyperparams: Hyperparams, family: Family, frozen_dtype: torch.dtype
) -> Trainable:
    """The grown model of `folder` on the CPU.

    `train_scope` new: only what the plan added learns; the rest is frozen and kept once, in `frozen_dtype`. Autograd
    then records nothing below the first new block, so the backward pass ends there. `train_scope` all: everything
    learns, old weights at `old_lr_scale` of the rate, or at the whole rate where nothing was added. A head of its own
    is new and learns at HEAD_LR_SCALE of the rate. Widened FFNs are two branches, so that new channels are parameters
    of their own; the export joins them again.
    """
    model = load_model(folder)  # as stored, so that what learns starts from every bit there is
    if plan.ffn_after > plan.ffn_before:
        split_ffns(model, family, plan.ffn_before)
    new = _is_new(plan, family)
    if hyperparams.train_scope == "new":
        return Trainable(model, _freeze(model, new, frozen_dtype), {HEAD: HEAD_LR_SCALE} if plan.own_head else {})
    parameters = _freeze(model, lambda name: not is_spare_bias(name, family), frozen_dtype)
    old = [name for name in parameters if not new(name)] if plan.params_added else []
    scales = dict.fromkeys(old, hyperparams.old_lr_scale) | ({HEAD: HEAD_LR_SCALE} if plan.own_head else {})
    return Trainable(model, parameters, scales)


def load_frozen(folder: Path, learns: Callable[[str], bool], frozen_dtype: torch.dtype) -> tuple[Any, Parameters]:
    """A model whose parameters learn, in fp32, where `learns(name)` says so; the others are in `frozen_dtype`."""
    model = load_model(folder)
    return model, _freeze(model, learns, frozen_dtype)


def _freeze(model: Any, learns: Callable[[str], bool], frozen_dtype: torch.dtype) -> Parameters:
    parameters: Parameters = {}
    for name, parameter in model.named_parameters():
        learning = learns(name)
        parameter.data = parameter.data.to(torch.float32 if learning else frozen_dtype)
        parameter.requires_grad_(learning)
        if learning:
            parameters[name] = parameter
    return parameters


def _is_new(plan: GrowthPlan, family: Family) -> Callable[[str], bool]:
    """Whether a parameter lies in a new block, or in the new branch of a widened FFN."""
    blocks = set(new_blocks(plan))

    def new(name: str) -> bool:
        place = family.split(name)
        if place is None:
            return plan.own_head and name == HEAD
        _, branch = whole_name(name, family)
        return place[0] in blocks or (branch == "new" and not is_spare_bias(name, family))

    return new
