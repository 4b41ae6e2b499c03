"""What a person sees of a run: its events as a progress bar and a line for each measurement, on stderr."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusion_core.trainer_protocol import (
    EVENTS_FILE,
    CheckpointSaved,
    Evaluation,
    EventReader,
    Grown,
    Metrics,
    Notice,
    PhaseChanged,
    TrainerEvent,
)

from fusion_engine.commands.work_folder import drop_older_checkpoints

_POLL_S = 0.2


@contextmanager
def watched(run_dir: Path, total_steps: int, first_step: int, label: str) -> Iterator[None]:
    """Show what happens in `run_dir` while the block runs; of its checkpoints only the newest is kept."""
    from tqdm import tqdm

    (run_dir / EVENTS_FILE).unlink(missing_ok=True)  # those of an earlier attempt have been seen
    reader, done = EventReader(run_dir), threading.Event()
    with tqdm(total=total_steps, initial=first_step, unit="step", desc=label, disable=None, file=sys.stderr) as bar:

        def show() -> None:
            while not done.wait(_POLL_S):
                for _, event in reader.read():
                    _show(bar, event)
            for _, event in reader.read():
                _show(bar, event)

        thread = threading.Thread(target=show, name="watch")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _show(bar: Any, event: TrainerEvent) -> None:
    if isinstance(event, CheckpointSaved):
        drop_older_checkpoints(Path(event.path))
    elif isinstance(event, Metrics):
        bar.update(event.step - bar.n)
        bar.set_postfix(loss=f"{event.loss:.3f}", lr=f"{event.lr:.1e}", tokens=f"{event.tokens_per_s:,.0f}/s")
    elif line := _line(event):
        bar.write(line, file=sys.stderr)


def _line(event: TrainerEvent) -> str:
    if isinstance(event, PhaseChanged):
        return f"{event.phase}: {event.message}" if event.message else event.phase
    if isinstance(event, Grown):
        return f"grown from {event.params_before:,} to {event.params_after:,} parameters, logits unchanged"
    if isinstance(event, Evaluation):
        retained = f", on the base's own text {event.retention_perplexity:.2f}" if event.retention_perplexity else ""
        return f"step {event.step}: held-out perplexity {event.perplexity:.2f}{retained}"
    return f"notice: {event.message}" if isinstance(event, Notice) else ""
