"""`python -m fusion_engine RUN_DIR`: one attempt of a worker, under accelerate or alone."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from fusion_core.parent_death import die_with_parent
from fusion_core.stack_dump import dump_stacks_on_signal

from fusion_engine.commands import Subparsers

NAME = "attempt"


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(NAME, description=__doc__)
    parser.add_argument("destination", metavar="RUN_DIR", type=Path, help="a folder with run.json")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    die_with_parent()  # the launcher dies with its daemon, and we with the launcher
    dump_stacks_on_signal()

    from fusion_engine.run import execute

    execute(arguments.destination.resolve())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave_at_once()
    return 0


def _leave_at_once() -> NoReturn:
    """End without taking Python down: everything is written, and torch's threads of a group may still want the GIL,
    which then aborts the process (pytorch/pytorch issue 90549), and the launcher calls finished work a crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
