"""`fusion-engine inspect`: what a model is, what it costs to run and how it can be grown."""

import argparse
from pathlib import Path

import msgspec
from fusion_core.growth_plan import DEFAULT_GROWTH_FACTOR, GrowthPlan, channel_step
from fusion_core.model_shapes import ModelShape

from fusion_engine.commands import Subparsers
from fusion_engine.inference_cost import InferenceCost
from fusion_engine.model_config import plan_of, read_config, read_shape
from fusion_engine.outcomes import RejectedError

_EPILOG = """\
examples:
  fusion-engine inspect ./SmolLM3-3B
  fusion-engine inspect ./SmolLM3-3B --json
"""


class _Report(msgspec.Struct, kw_only=True):
    params: int
    block_params: int
    shape: ModelShape
    inference: InferenceCost
    depth: GrowthPlan | None  # the default growth; None where the model cannot grow in depth
    depth_fault: str = ""
    width: GrowthPlan


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="family, sizes, what can be grown",
        description="Say what MODEL is and what can be grown. Reads its config.json and nothing else.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model folder, or a config.json")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = read_config(arguments.model)
    shape = read_shape(config)
    report = _Report(
        params=shape.params,
        block_params=shape.block_params,
        shape=shape,
        inference=InferenceCost.of(shape),
        depth=None,
        width=plan_of(config, growth_factor=DEFAULT_GROWTH_FACTOR, axis="width"),
    )
    try:
        report.depth = plan_of(config, growth_factor=DEFAULT_GROWTH_FACTOR)
    except RejectedError as error:
        report.depth_fault = error.message
    print(msgspec.json.encode(report).decode() if arguments.json else _describe(report))
    return 0


def _describe(report: _Report) -> str:
    shape, cost = report.shape, report.inference
    norms = " with query and key norms" if shape.qk_norm else ""
    lines = [
        f"family      {shape.family}",
        f"parameters  {shape.params:,}  ({shape.block_params:,} in each of {shape.layers} layers)",
        f"hidden      {shape.hidden:,}, FFN {shape.ffn:,}",
        f"attention   {shape.heads} query and {shape.kv_heads} key/value heads of {shape.head_dim}{norms}",
        f"embedding   {shape.vocab:,} entries, {'tied to' if shape.tied else 'apart from'} the output head",
        f"weights     {cost.weights / 1e9:,.2f} GB in bf16",
        f"KV cache    {cost.cache_per_token:,} bytes a token in bf16",
    ]
    if shape.ssm_params:
        lines.append(
            f"SSM         {shape.ssm_params:,} parameters a layer, {cost.state_per_sequence:,} bytes a sequence"
        )
    grown = InferenceCost.of(shape, report.depth).cache_per_token if report.depth else 0
    steps = "one layer at a time" if shape.group == 1 else f"in groups of {shape.group} layers"
    depth = (
        f"{steps}; by default to {report.depth.layers_after} layers{', a head of its own' * report.depth.own_head} and"
        f" {report.depth.params_after:,} parameters, KV cache {grown:,} bytes a token"
        if report.depth
        else f"no: {report.depth_fault}"
    )
    return "\n".join(
        [
            *lines,
            "can grow",
            f"  depth     {depth}",
            f"  width     FFN in steps of {channel_step(shape.ffn)} channels; for as much, to"
            f" {report.width.ffn_after:,} channels and {report.width.params_after:,} parameters, the same KV cache",
        ]
    )
