"""A trainer that computes nothing: it speaks the whole protocol within milliseconds. python stub_trainer.py RUN_DIR

Of a sample job it makes a pool of one line. Else the first word of output_name chooses what it does:

    normal   every step at once, a checkpoint in the middle, an export
    sleep    a checkpoint in the middle, then waits to be asked to stop; resumed, it goes on as `normal`
    hang     like sleep, but deaf, and with a child in a session of its own
    stall    hangs in the middle, before it has saved anything
    linger   like normal, but does not leave when its work is done
    crash    ends in the middle without an outcome and without a checkpoint
    relapse  like crash, but only until a checkpoint has been resumed; saves one before it crashes
    full     finds the disk full
    broken   finds its GPU broken, on the first attempt
    reject   refuses its input
"""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

from fusion_core.stack_dump import dump_stacks_on_signal
from fusion_core.trainer_protocol import (
    MANIFEST_FILE,
    CheckpointSaved,
    Diagnosed,
    EngineRun,
    Evaluation,
    EventWriter,
    ExportSaved,
    FileEntry,
    Finished,
    Grown,
    Manifest,
    Metrics,
    Notice,
    PhaseChanged,
    Rejected,
    SampleRun,
    ShardSaved,
    Stopped,
    TrainRun,
    read_control,
    read_run,
    write_atomic,
)
from msgspec import json

GIVE_UP_S = 60.0
STEPS = 4


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


def hang() -> None:
    time.sleep(GIVE_UP_S)


class StubTrainer:
    """One run of the stub."""

    def __init__(self, run_dir: Path) -> None:
        run = read_run(run_dir)
        if not isinstance(run, EngineRun):
            raise SystemExit("the stub reads no datasets")
        self._run = run
        self._run_dir = run_dir
        self._mode = run.output_name.split("-")[0]
        self._events = EventWriter(run_dir)
        self._step = 0

    def run(self) -> None:
        self._events.emit(PhaseChanged(phase="preparing"))
        self._check_inputs()
        if isinstance(self._run, SampleRun):
            self._sample()
            return
        if self._mode == "reject":
            self._events.emit(Rejected(code="dataset_too_short", message="not enough text"))
            return
        if self._mode == "broken" and self._run.lease_epoch == 1:
            sys.exit("RuntimeError: CUDA error: uncorrectable ECC error encountered")
        if self._mode == "full":
            sys.exit("stub_trainer: disk_full: no space left on device")
        self._start()
        total = STEPS
        while self._step < total:
            self._step += 1
            self._report_step()
            if self._step == total // 2 and not self._pass_middle():
                return
        self._export()

    def _check_inputs(self) -> None:
        """Every file that run.json names is there."""
        run = self._run
        named = (*run.train_shards, *run.heldout_shards, *run.rehearsal_files, *run.pool_files)
        for path in (*named, f"{self._run.base_dir}/config.json"):
            Path(path).read_bytes()

    def _start(self) -> None:
        if self._run.checkpoint_dir is not None:
            self._step = int((Path(self._run.checkpoint_dir) / "state").read_text())
            return
        if isinstance(self._run, TrainRun):
            self._events.emit(PhaseChanged(phase="diagnosing"))
            self._events.emit(Diagnosed(scores=(1.0, 2.0), new_after=(1,)))
            self._events.emit(PhaseChanged(phase="growing"))
            self._events.emit(Grown(params_before=1, params_after=2, function_preservation=0.0))
        self._events.emit(Evaluation(step=0, turn=0, perplexity=9.0, tokens=7, retention_perplexity=3.0))
        self._events.emit(PhaseChanged(phase="training"))

    def _report_step(self) -> None:
        point = Metrics(step=self._step, cycle=1, loss=1.0, lr=0.1, throughput=100.0, tokens_per_s=1.0, grad_norm=1.0)
        self._events.emit(point)

    def _pass_middle(self) -> bool:
        """False: the run ends here."""
        if self._mode == "crash":
            sys.exit("stub_trainer: crashed as asked")
        if self._mode == "stall":
            hang()
        self._checkpoint()
        if self._mode == "relapse":
            time.sleep(1)  # long enough for the checkpoint to be on its way
            sys.exit("stub_trainer: crashed as asked")
        if self._mode == "hang":
            argv = [sys.executable, "-c", f"import time; time.sleep({GIVE_UP_S})"]
            subprocess.Popen(argv, start_new_session=True)
            hang()
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

    def _sample(self) -> None:
        content = b'{"ids":[1,2,3]}\n'
        path = self._run_dir / "pool" / "train-00000.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        file = FileEntry(path.name, len(content), hashlib.sha256(content).hexdigest())
        self._events.emit(ShardSaved(path=str(path), split="train", rows=1, file=file))
        self._events.emit(Finished(result={}))

    def _export(self) -> None:
        self._events.emit(Notice(code="micro_batch_halved", message="The micro-batch is 1 now."))
        self._events.emit(PhaseChanged(phase="exporting"))
        folder = self._run_dir / "export"
        manifest = save(folder, {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights"})
        self._events.emit(ExportSaved(path=str(folder), manifest=manifest, params=2))
        used = [Path(path).name for path in self._run.pool_files]
        names = [self._run.base_name, self._run.dataset_name, self._run.output_name]
        self._events.emit(Finished(result={"steps": self._step, "names": names, "pool_files": used}))
        if self._mode == "linger":
            hang()


if __name__ == "__main__":
    dump_stacks_on_signal()
    StubTrainer(Path(sys.argv[1])).run()
