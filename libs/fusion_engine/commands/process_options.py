"""The arguments that say how a stand-alone job runs, none of which changes its result."""

import argparse
import os


def add_process_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", metavar="N", type=int, default=1, help="processes, one for each GPU")
    parser.add_argument("--threads", metavar="N", type=int, default=_cores(), help="CPU threads of each (%(default)s)")
    parser.add_argument(
        "--checkpoint-every", metavar="S", type=float, default=120.0, help="seconds between checkpoints (%(default)s)"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
