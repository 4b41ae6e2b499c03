"""Whether a trainer gets on. Only its events count: a process that is alive, or a thread that beats, proves nothing."""

import time
from collections import deque
from pathlib import Path

from fusion_core.trainer_protocol import IngestRun, Metrics, Outcome, PhaseChanged, Run, TrainerEvent

SLOW_STEPS = 20  # a step may take this many times as long as the slowest of as many before it
QUIET_FACTOR = 12  # preparing, growing and exporting say little: they may be silent for this many times as long
SLOWEST_READ = 500_000  # bytes of data a second: tokenizing a large dataset is one long silence
EXIT_S = 60.0  # from the outcome to the end of the process
_LONGEST_LOOK_S = 5.0


class TrainerStalledError(Exception):
    """The trainer lives and gets nowhere; says for how long and where it was."""


class StallWatch:
    """Counts silence. Time in which nobody looked (Postgres away, the daemon stopped) is not the trainer's silence."""

    def __init__(self, stall_s: float, data_bytes: int) -> None:
        self._stall_s = stall_s
        self._quiet_s = QUIET_FACTOR * stall_s + data_bytes / SLOWEST_READ
        self._phase = "preparing"
        self._step = 0
        self._step_times_s: deque[float] = deque(maxlen=SLOW_STEPS)
        self._ended = False
        self._silent_s = 0.0
        self._looked_at = time.monotonic()

    def saw(self, event: TrainerEvent) -> None:
        """Every event is progress."""
        self._silent_s = 0.0
        if isinstance(event, PhaseChanged):
            self._phase = event.phase
            self._step_times_s.clear()
        elif isinstance(event, Metrics):
            self._step = event.step
            if event.throughput > 0:
                self._step_times_s.append(1 / event.throughput)
        elif isinstance(event, Outcome):
            self._ended = True

    @property
    def deadline_s(self) -> float:
        """How long the trainer may be silent where it is. Before the first step it loads and measures the model."""
        if self._ended:
            return EXIT_S
        if self._phase == "training" and self._step_times_s:
            return max(self._stall_s, SLOW_STEPS * max(self._step_times_s))
        return self._quiet_s

    def look(self) -> bool:
        """Whether the trainer has ended its work and does not leave. To be called often, after reading its events.

        Raises TrainerStalledError.
        """
        now = time.monotonic()
        self._silent_s += min(now - self._looked_at, _LONGEST_LOOK_S)
        self._looked_at = now
        if self._silent_s <= self.deadline_s:
            return False
        if self._ended:
            return True
        place = f"in phase {self._phase}" + (f" after step {self._step}" if self._step else "")
        raise TrainerStalledError(f"the trainer was alive and silent for {self._silent_s:.0f} s {place}")


def data_bytes_of(run: Run) -> int:
    """The size of the files whose rows the trainer reads."""
    if isinstance(run, IngestRun):
        paths = [one.path for one in run.inputs]
    else:
        paths = [*run.train_shards, *run.heldout_shards, *run.rehearsal_files, *run.pool_files]
    return sum(Path(path).stat().st_size for path in paths)
