"""Events out and stop requests in, seen the same by every rank: only rank 0 touches the run directory's files."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from fusion_core.trainer_protocol import EventWriter, PhaseChanged, StopReason, TrainerEvent, read_control
from fusion_core.trainer_protocol import Phase as PhaseName

from fusion_engine.outcomes import StoppedError


class Reporter:
    def __init__(self, run_dir: Path, accelerator: Accelerator) -> None:
        self._run_dir, self._accelerator = run_dir, accelerator
        self._writer = EventWriter(run_dir) if accelerator.is_main_process else None

    def emit(self, event: TrainerEvent) -> None:
        if self._writer is not None:
            self._writer.emit(event)

    def phase(self, phase: PhaseName, message: str = "") -> None:
        self.emit(PhaseChanged(phase=phase, message=message))

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank. All ranks must call this at the same point."""
        if self._accelerator.num_processes == 1:
            return value
        box = [value]
        broadcast_object_list(box)
        return box[0]

    def requested_stop(self) -> StopReason | None:
        """What control.json asks for now; only rank 0's answer counts."""
        return read_control(self._run_dir) if self._writer is not None else None

    def obey(self, step: int) -> None:
        """Raises StoppedError when control.json asks to stop: for places where there is nothing to save."""
        reason = self.agree(self.requested_stop())
        if reason is not None:
            raise StoppedError(step, reason)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
