"""The arguments that say how a stand-alone job runs, none of which changes its result."""

import argparse
import os

from fusion_engine.commands.parser import positive, seconds
from fusion_engine.outcomes import RejectedError


def add_process_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", metavar="N", type=positive, default=1, help="processes, one for each GPU")
    parser.add_argument(
        "--threads", metavar="N", type=positive, default=_cores(), help="CPU threads of each (%(default)s)"
    )
    parser.add_argument(
        "--checkpoint-every", metavar="S", type=seconds, default=120.0, help="seconds between checkpoints (%(default)s)"
    )


def check_processes(arguments: argparse.Namespace, batch_size: int) -> None:
    """Raises RejectedError validation_failed where a micro-batch cannot be shared by the processes."""
    if batch_size % arguments.processes:
        message = f"--batch-size {batch_size} cannot be shared by {arguments.processes} processes; give a multiple"
        raise RejectedError("validation_failed", message)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
