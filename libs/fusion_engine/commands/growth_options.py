"""The arguments that describe a growth, shared by the commands that plan one, and how a plan is printed."""

import argparse
from typing import Any

from fusion_core.growth_plan import DEFAULT_GROWTH_FACTOR, GrowthPlan
from fusion_core.model_shapes import ModelShape

from fusion_engine.inference_cost import InferenceCost
from fusion_engine.model_config import plan_of


def add_growth_options(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--growth-factor",
        metavar="F",
        type=float,
        default=DEFAULT_GROWTH_FACTOR,
        help="parameters after / before, 1.0 to 4.0; the nearest that whole layers or channels allow (%(default)s)",
    )
    size.add_argument("--layers-added", metavar="N", type=int, help="so many new layers instead")
    parser.add_argument(
        "--axis", choices=("depth", "width"), default="depth", help="new layers, or wider FFNs (%(default)s)"
    )
    parser.add_argument(
        "--placement",
        choices=("upper", "even"),
        default="upper",
        help="new layers over the upper half of the stack, or over all of it (%(default)s)",
    )
    parser.add_argument(
        "--own-head",
        action=argparse.BooleanOptionalAction,
        help="a head of its own for a model whose head is its embedding, paid out of the factor (in growth by depth,"
        " where the factor pays for it and a layer)",
    )


def plan_from(config: dict[str, Any], arguments: argparse.Namespace) -> GrowthPlan:
    """Raises RejectedError for a bad config or an impossible request."""
    return plan_of(
        config,
        growth_factor=arguments.growth_factor,
        layers_added=arguments.layers_added,
        axis=arguments.axis,
        placement=arguments.placement,
        own_head=arguments.own_head,
    )


def describe(shape: ModelShape, plan: GrowthPlan) -> str:
    """The plan in a few lines for people."""
    before, after = InferenceCost.of(shape), InferenceCost.of(shape, plan)
    factor = plan.params_after / plan.params_before
    lines = [
        f"family      {shape.family}",
        f"parameters  {plan.params_before:,} -> {plan.params_after:,}  (x {factor:.4f}, {plan.params_added:,} new)",
        f"layers      {plan.layers_before} -> {plan.layers_after}",
        f"FFN width   {plan.ffn_before:,} -> {plan.ffn_after:,}",
        f"weights     {before.weights / 1e9:,.2f} GB -> {after.weights / 1e9:,.2f} GB in bf16",
        f"KV cache    {before.cache_per_token:,} -> {after.cache_per_token:,} bytes a token in bf16",
    ]
    if shape.ssm_state:
        lines.append(f"SSM state   {before.state_per_sequence:,} -> {after.state_per_sequence:,} bytes a sequence")
    if plan.own_head:
        lines.append("new head    a copy of the embedding that the head was tied to")
    if plan.new_after:
        lines.append(f"new layers  after the old layers {', '.join(str(number) for number in plan.new_after)}")
    return "\n".join(lines)
