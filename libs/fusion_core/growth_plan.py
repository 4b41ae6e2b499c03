"""Growth plans: torch-free arithmetic that says where new capacity goes and how large the model becomes.

Depth growth inserts copies of existing blocks whose residual-writing projections are zeroed, so that the grown model
computes exactly what the base computes (LLaMA-Pro, arXiv 2401.02415). Width growth adds FFN channels whose output
columns are zero.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec

from fusion_core.model_shapes import Config, ModelShape, shape_of

DEFAULT_GROWTH_FACTOR, GROWTH_FACTOR_LIMIT = 1.52, 4.0
_CHANNELS, _CHANNELS_OF_TINY, _TINY_FFN = 128, 8, 2048

Axis = Literal["depth", "width"]
Placement = Literal["upper", "even"]


class GrowthPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A validated description of the added capacity.

    Depth: new block j copies old block `new_after[j]`. Blocks come in whole groups of `group` (2 in Gemma 2, 6 in Gemma
    3, otherwise 1), and a copied group follows its source group, so that the pattern of attention types is kept. Width:
    every block's FFN goes from `ffn_before` to `ffn_after` channels. No growth: `new_after` is empty and the widths are
    equal. `own_head`: a head that was tied to the embedding becomes a matrix of its own, at first its copy. How many
    parameters are added is fixed when the job is created; the diagnosis may still choose other places for as many
    blocks.
    """

    axis: Axis = "depth"
    layers_before: int
    group: int = 1
    new_after: tuple[int, ...] = ()
    ffn_before: int = 0
    ffn_after: int = 0
    own_head: bool = False
    params_before: int
    params_after: int

    @property
    def layers_after(self) -> int:
        return self.layers_before + len(self.new_after)

    @property
    def params_added(self) -> int:
        return self.params_after - self.params_before

    @property
    def groups_before(self) -> int:
        """The groups that can be copied; blocks on top of the last whole one cannot."""
        return self.layers_before // self.group

    @property
    def groups_added(self) -> int:
        return len(self.new_after) // self.group

    def layout(self) -> list[tuple[int, bool]]:
        """The grown stack from bottom to top as (source block, is it new)."""
        stack: list[tuple[int, bool]] = []
        for first in range(0, self.layers_before, self.group):
            blocks = range(first, min(first + self.group, self.layers_before))
            stack.extend((block, False) for block in blocks)
            for _ in range(self.new_after.count(first)):
                stack.extend((block, True) for block in blocks)
        return stack

    def sha256(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def plan_growth(
    config: Config,
    *,
    growth_factor: float = DEFAULT_GROWTH_FACTOR,
    layers_added: int | None = None,
    axis: Axis = "depth",
    placement: Placement = "upper",
    own_head: bool | None = None,
) -> GrowthPlan:
    """Plan the growth of the model that a config.json describes.

    `growth_factor` is parameters after / before, and the plan comes as near to it as whole groups of blocks, or whole
    steps of FFN channels, can; 1.0 is the empty plan: further training only. `layers_added` takes its place when given.
    `placement` says where new blocks go, before any diagnosis: spread over the upper half of the stack, which measured
    better at equal cost, or over all of it.

    `own_head` gives a model whose head is tied to its embedding a head of its own; a model that has one is planned as
    without. The head is paid out of the factor before blocks or channels are, and comes on top of `layers_added`. None
    gives it to a model that grows in depth by a factor that pays for the head and a group of blocks.

    Raises UnsupportedArchitectureError, msgspec.ValidationError for a config that describes no model, or ValueError for
    an impossible request; the message says what is possible.
    """
    if not 1.0 <= growth_factor <= GROWTH_FACTOR_LIMIT:
        raise ValueError(f"growth_factor is {growth_factor}; it must lie between 1.0 and {GROWTH_FACTOR_LIMIT}")
    shape = shape_of(config)
    if layers_added is not None:
        if axis == "width":
            raise ValueError("layers_added adds depth; with growth_axis width, give growth_factor instead")
        plan = _plan_depth(shape, _groups_of_layers(shape, layers_added), placement)
        return _with_own_head(plan, shape) if own_head and shape.tied else plan
    if growth_factor == 1.0:
        if own_head:
            raise ValueError("own_head adds parameters and growth_factor 1.0 adds none; choose a larger one")
        return _plan_depth(shape, 0, placement) if axis == "depth" else _plan_width(shape, shape.ffn)
    budget = (growth_factor - 1.0) * shape.params
    if own_head is None:
        own_head = axis == "depth" and shape.head_params + shape.group * shape.block_params <= budget
    if not (own_head and shape.tied):
        return _plan_budget(shape, budget, axis, placement)
    return _with_own_head(_plan_budget(shape, budget - shape.head_params, axis, placement), shape)


def place(plan: GrowthPlan, groups: Iterable[int]) -> GrowthPlan:
    """The same plan with its new groups elsewhere: `groups` names the old group that each copies and follows.

    Groups count from 0 at the bottom; where `plan.group` is 1 they are blocks. Raises ValueError unless there are as
    many as the plan adds, all of them whole groups of the base.
    """
    chosen = sorted(groups)
    if len(chosen) != plan.groups_added or not all(0 <= number < plan.groups_before for number in chosen):
        raise ValueError(
            f"{chosen} cannot be the places of {plan.groups_added} new groups over {plan.groups_before} old ones"
        )
    new_after = tuple(number * plan.group + block for number in chosen for block in range(plan.group))
    return msgspec.structs.replace(plan, new_after=new_after)


def channel_step(ffn: int) -> int:
    """FFN widths are multiples of this, so that matrix kernels stay fast; tiny models may be finer."""
    return _CHANNELS_OF_TINY if ffn < _TINY_FFN else _CHANNELS


def _groups_of_layers(shape: ModelShape, layers_added: int) -> int:
    most = _groups_of_budget(shape, (GROWTH_FACTOR_LIMIT - 1.0) * shape.params) * shape.group
    if layers_added % shape.group == 0 and 1 <= layers_added <= most:
        return layers_added // shape.group
    if shape.group == 1:
        raise ValueError(f"layers_added is {layers_added}; for this model it can be 1 to {most}")
    raise ValueError(
        f"layers_added is {layers_added}; this model's attention pattern repeats every {shape.group} layers, so it can"
        f" be {shape.group}, {2 * shape.group} and so on up to {most}"
    )


def _plan_budget(shape: ModelShape, budget: float, axis: Axis, placement: Placement) -> GrowthPlan:
    """The whole groups of blocks, or steps of channels, that come nearest to `budget` parameters; at least one."""
    if axis == "width":
        return _plan_width(shape, _channels_of_budget(shape, budget))
    return _plan_depth(shape, _groups_of_budget(shape, budget), placement)


def _groups_of_budget(shape: ModelShape, budget: float) -> int:
    _require_whole_group(shape)
    return max(1, round(budget / (shape.group * shape.block_params)))


def _require_whole_group(shape: ModelShape) -> None:
    if shape.layers < shape.group:
        raise ValueError(
            f"the model has {shape.layers} layers and its attention pattern repeats every {shape.group}: no whole group"
            " can be added; use growth_axis width"
        )


def _plan_depth(shape: ModelShape, groups: int, placement: Placement) -> GrowthPlan:
    plan = GrowthPlan(
        layers_before=shape.layers,
        group=shape.group,
        new_after=(0,) * (groups * shape.group),
        ffn_before=shape.ffn,
        ffn_after=shape.ffn,
        params_before=shape.params,
        params_after=shape.params + groups * shape.group * shape.block_params,
    )
    return place(plan, _places(plan.groups_before, groups, placement))


def _places(whole: int, groups: int, placement: Placement) -> list[int]:
    """For each new group the old one that it follows, evenly spaced and the last on top."""
    if placement == "even":
        return [max(0, round((j + 1) * whole / groups) - 1) for j in range(groups)]
    lowest = whole // 2
    return [max(0, lowest + (j + 1) * (whole - lowest) // groups - 1) for j in range(groups)]


def _channels_of_budget(shape: ModelShape, budget: float) -> int:
    step = channel_step(shape.ffn)
    wanted = shape.ffn + budget / (shape.layers * shape.ffn_channel_params)
    return max(round(wanted / step), shape.ffn // step + 1) * step


def _plan_width(shape: ModelShape, ffn_after: int) -> GrowthPlan:
    added = shape.layers * (ffn_after - shape.ffn) * shape.ffn_channel_params
    return GrowthPlan(
        axis="width",
        layers_before=shape.layers,
        group=shape.group,
        ffn_before=shape.ffn,
        ffn_after=ffn_after,
        params_before=shape.params,
        params_after=shape.params + added,
    )


def _with_own_head(plan: GrowthPlan, shape: ModelShape) -> GrowthPlan:
    return msgspec.structs.replace(plan, own_head=True, params_after=plan.params_after + shape.head_params)
