"""`fusion-engine plan`: the exact size of a grown model, from its config.json alone."""

import argparse
from pathlib import Path

import msgspec

from fusion_engine.commands import Subparsers
from fusion_engine.commands.growth_options import add_growth_options, describe, plan_from
from fusion_engine.model_config import read_config, read_shape

_EPILOG = """\
examples:
  fusion-engine plan ./Falcon-H1-1.5B                       the default growth: 24 -> 39 layers
  fusion-engine plan ./gemma-2-2b --layers-added 4          Gemma 2 grows in pairs of layers
  fusion-engine plan ./Qwen3-0.6B --axis width --json       for scripts
"""


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="print the exact size of a grown model; reads config.json only",
        description="Print what growing MODEL would give, to the parameter. Reads its config.json and nothing else.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model folder, or a config.json")
    add_growth_options(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    config = read_config(arguments.model)
    plan = plan_from(config, arguments)
    print(msgspec.json.encode(plan).decode() if arguments.json else describe(read_shape(config), plan))
    return 0
