"""A job on this machine: watched, stopped by Ctrl-C at a checkpoint, and gone on with by the same command."""

import argparse
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fusion_core.trainer_protocol import EngineRun, EventReader, Finished, Outcome, Rejected, write_control

from fusion_engine.commands.watch import watched
from fusion_engine.commands.work_folder import write_attempt
from fusion_engine.outcomes import RejectedError
from fusion_engine.run_directory import EXPORT_FOLDER

_STOPPED_EXIT = 130


def common_fields(arguments: argparse.Namespace, destination: Path) -> dict[str, Any]:
    """What run.json says of every kind of job on this machine."""
    base = arguments.model.resolve()
    return {
        "job_id": destination.name,
        "lease_epoch": 1,
        "base_dir": str(base),
        "base_name": base.name,
        "output_name": destination.name,
        "dataset_name": ", ".join(path.name for path in arguments.data),
        "checkpoint_every_s": arguments.checkpoint_every,
        "num_processes": arguments.processes,
        "threads": arguments.threads,
    }


def work_off(folder: Path, run: EngineRun, total_steps: int, label: str = "training") -> Outcome | None:
    """The outcome of `run` in its work folder, from the newest checkpoint there; None where all processes died."""
    checkpoint = write_attempt(folder, run)
    first_step = int(checkpoint.name) if checkpoint is not None else 0
    with watched(folder, total_steps, first_step, label), _interrupt_stops(folder):
        return _execute(folder, run.num_processes)


def conclude(outcome: Outcome | None, folder: Path, destination: Path, tell: Callable[[dict[str, Any]], None]) -> int:
    """Put the export in its place, `tell` its result and delete the work folder; the exit code.

    Raises RejectedError for bad input.
    """
    if outcome is None:
        print("fusion_engine: the processes died; the same command goes on from the last checkpoint", file=sys.stderr)
        return 1
    if isinstance(outcome, Rejected):
        raise RejectedError(outcome.code, outcome.message, outcome.errors)
    if not isinstance(outcome, Finished):
        print(f"stopped after step {outcome.step}; the same command goes on from there", file=sys.stderr)
        return _STOPPED_EXIT
    (folder / EXPORT_FOLDER).rename(destination)
    shutil.rmtree(folder)
    tell(outcome.result)
    print(f"written     {destination}")
    return 0


def _execute(folder: Path, processes: int) -> Outcome | None:
    """The outcome; None where the processes of a group ended without one."""
    if processes == 1:
        from fusion_engine.run import execute

        return execute(folder)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    subprocess.run([*launch, "-m", "fusion_engine", str(folder)], check=False, start_new_session=True)
    last = [event for _, event in EventReader(folder).read()][-1:]
    return last[0] if last and isinstance(last[0], Outcome) else None


@contextmanager
def _interrupt_stops(folder: Path) -> Iterator[None]:
    """Have the first Ctrl-C save and stop, and the second interrupt as usual."""

    def stop(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        print("stopping at a checkpoint; Ctrl-C again to stop without", file=sys.stderr)
        write_control(folder, "stop")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
