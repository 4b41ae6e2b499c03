"""A trainer that computes nothing: it speaks the whole protocol within milliseconds. python stub_trainer.py RUN_DIR

The first word of hyperparams.output_name chooses what it does:

    normal   every step at once, a checkpoint in the middle, an export
    sleep    a checkpoint in the middle, then waits to be asked to stop; resumed, it goes on as `normal`
    hang     like sleep, but deaf, and with a child in a session of its own
    crash    ends in the middle without an outcome and without a checkpoint
    relapse  like crash, but only until a checkpoint has been resumed; saves one before it crashes
    full     finds the disk full
    reject   refuses its input
"""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

from fusion_core.trainer_protocol import (
    MANIFEST_FILE,
    CheckpointSaved,
    EventWriter,
    ExportSaved,
    FileEntry,
    Finished,
    Grown,
    Manifest,
    Metrics,
    PhaseChanged,
    Rejected,
    Stopped,
    TrainRun,
    read_control,
    read_run,
    write_atomic,
)
from msgspec import json

GIVE_UP_S = 60.0


def save(folder: Path, contents: dict[str, bytes]) -> Manifest:
    """A complete folder with its manifest, there from one moment to the next."""
    building = folder.with_name(f".{folder.name}.new")
    building.mkdir()
    entries = []
    for rel, content in sorted(contents.items()):
        (building / rel).write_bytes(content)
        entries.append(FileEntry(rel, len(content), hashlib.sha256(content).hexdigest()))
    manifest = Manifest(tuple(entries))
    write_atomic(building / MANIFEST_FILE, json.encode(manifest))
    building.rename(folder)
    return manifest


class StubTrainer:
    """One run of the stub."""

    def __init__(self, run_dir: Path) -> None:
        run = read_run(run_dir)
        if not isinstance(run, TrainRun):
            raise SystemExit("the stub only trains")
        self._run = run
        self._run_dir = run_dir
        self._mode = (run.hyperparams.output_name or "normal").split("-")[0]
        self._events = EventWriter(run_dir)
        self._step = 0

    def run(self) -> None:
        self._events.emit(PhaseChanged(phase="preparing"))
        self._check_inputs()
        if self._mode == "reject":
            self._events.emit(Rejected(code="dataset_too_short", message="not enough text"))
            return
        if self._mode == "full":
            sys.exit("stub_trainer: disk_full: no space left on device")
        self._start()
        total = self._run.hyperparams.total_steps
        while self._step < total:
            self._step += 1
            self._report_step()
            if self._step == total // 2 and not self._pass_middle():
                return
        self._export()

    def _check_inputs(self) -> None:
        """Every file that run.json names is there."""
        named = (*self._run.train_shards, *self._run.heldout_shards, *self._run.rehearsal_files)
        for path in (*named, f"{self._run.base_dir}/config.json"):
            Path(path).read_bytes()

    def _start(self) -> None:
        if self._run.checkpoint_dir is not None:
            self._step = int((Path(self._run.checkpoint_dir) / "state").read_text())
            return
        self._events.emit(PhaseChanged(phase="growing"))
        self._events.emit(Grown(params_before=1, params_after=2, function_preservation=0.0))
        self._events.emit(PhaseChanged(phase="training"))

    def _report_step(self) -> None:
        cycle = self._run.hyperparams.cycle_of(self._step)
        point = Metrics(step=self._step, cycle=cycle, loss=1.0, lr=0.1, throughput=1.0, tokens_per_s=1.0, grad_norm=1.0)
        self._events.emit(point)

    def _pass_middle(self) -> bool:
        """False: the run ends here."""
        if self._mode == "crash":
            sys.exit("stub_trainer: crashed as asked")
        self._checkpoint()
        if self._mode == "relapse":
            time.sleep(1)  # long enough for the checkpoint to be on its way
            sys.exit("stub_trainer: crashed as asked")
        if self._mode == "hang":
            argv = [sys.executable, "-c", f"import time; time.sleep({GIVE_UP_S})"]
            subprocess.Popen(argv, start_new_session=True)
            time.sleep(GIVE_UP_S)
        return self._mode != "sleep" or not self._stopped()

    def _stopped(self) -> bool:
        """Wait to be asked to stop, and obey."""
        until = time.monotonic() + GIVE_UP_S
        while time.monotonic() < until:
            reason = read_control(self._run_dir)
            if reason is not None:
                self._events.emit(Stopped(step=self._step, reason=reason))
                return True
            time.sleep(0.05)
        return False

    def _checkpoint(self) -> None:
        folder = self._run_dir / "checkpoints" / str(self._step)
        folder.parent.mkdir(exist_ok=True)
        manifest = save(folder, {"state": str(self._step).encode(), "weights": b"w" * 1000})
        saved = CheckpointSaved(step=self._step, turn_end=False, path=str(folder), manifest=manifest)
        self._events.emit(saved)

    def _export(self) -> None:
        self._events.emit(PhaseChanged(phase="exporting"))
        folder = self._run_dir / "export"
        manifest = save(folder, {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights"})
        self._events.emit(ExportSaved(path=str(folder), manifest=manifest, params=2))
        self._events.emit(Finished(result={"steps": self._step}))


if __name__ == "__main__":
    StubTrainer(Path(sys.argv[1])).run()
