"""Looking at run directories: their events, their exports, and how to interrupt them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import EventReader, EventWriter, TrainerEvent, write_control
from fusion_engine.files import build_manifest
from fusion_engine.run import execute

HYPERPARAMS = Hyperparams(turns=2, cycles=2, steps_per_cycle=4, lr=1e-2, seq_len=16, batch_size=4)
MakeRun = Callable[..., Path]


def events(run_dir: Path) -> list[TrainerEvent]:
    return [event for _, event in EventReader(run_dir).read()]


def of_type(run_dir: Path, name: str) -> list[Any]:
    return [event for event in events(run_dir) if type(event).__name__ == name]


def outcome(run_dir: Path) -> Any:
    return events(run_dir)[-1]


def exported(run_dir: Path) -> dict[str, str]:
    return {file.rel: file.sha256 for file in build_manifest(run_dir / "export").files}


def last_checkpoint(run_dir: Path) -> str | None:
    saved = of_type(run_dir, "CheckpointSaved")
    return str(saved[-1].path) if saved else None


def request_stop_at(run_dir: Path, step: int, reason: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write control.json when the metrics of `step` are reported."""
    emit = EventWriter.emit

    def emit_and_stop(self: EventWriter, event: TrainerEvent) -> None:
        emit(self, event)
        if getattr(event, "step", None) == step:
            write_control(run_dir, reason)

    monkeypatch.setattr(EventWriter, "emit", emit_and_stop)


def killed_at(failpoint: str, run_dir: Path) -> None:
    """Execute the run in a process that kills itself with SIGKILL at the failpoint."""
    pid = os.fork()
    if pid == 0:  # a child with everything imported: no fresh interpreter's imports
        try:
            os.environ["FUSION_FAILPOINT"] = failpoint
            execute(run_dir)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the failpoint must have been hit"
