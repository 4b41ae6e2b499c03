"""A trainer whose weights are a hash chain: chain_trainer.py --step-s S --checkpoint-every N RUN_DIR

Step n's state is the SHA-256 of step n-1's and n, so the exported bytes say whether every step was computed once, in
order, from the right checkpoint: `weights` is what an undisturbed run exports. It obeys control.json between steps.
"""

import argparse
import hashlib
import time
from pathlib import Path

from fusion_core.trainer_protocol import (
    MANIFEST_FILE,
    CheckpointSaved,
    Diagnosed,
    EventWriter,
    ExportSaved,
    FileEntry,
    Finished,
    Grown,
    Manifest,
    Metrics,
    PhaseChanged,
    Stopped,
    TrainRun,
    read_control,
    read_run,
    write_atomic,
)
from msgspec import json

WEIGHTS_FILE = "model.safetensors"
REPEATS = 4096  # 256 KiB of weights: several pieces on the wire


def advance(state: bytes, step: int) -> bytes:
    return hashlib.sha256(state + step.to_bytes(8, "big")).digest()


def weights(name: str, steps: int) -> bytes:
    """What a run of this output name exports after so many steps."""
    state = hashlib.sha256(name.encode()).digest()
    for step in range(1, steps + 1):
        state = advance(state, step)
    return state.hex().encode() * REPEATS


def save(folder: Path, contents: dict[str, bytes]) -> Manifest:
    """A complete folder with its manifest, there from one moment to the next."""
    building = folder.with_name(f".{folder.name}.new")
    building.mkdir(parents=True)
    entries = []
    for rel, content in sorted(contents.items()):
        (building / rel).write_bytes(content)
        entries.append(FileEntry(rel, len(content), hashlib.sha256(content).hexdigest()))
    manifest = Manifest(tuple(entries))
    write_atomic(building / MANIFEST_FILE, json.encode(manifest))
    building.rename(folder)
    return manifest


class ChainTrainer:
    """One run."""

    def __init__(self, run_dir: Path, step_s: float, checkpoint_every: int) -> None:
        run = read_run(run_dir)
        if not isinstance(run, TrainRun):
            raise SystemExit("the chain trainer trains only")
        self._run, self._run_dir = run, run_dir
        self._step_s, self._checkpoint_every = step_s, checkpoint_every
        self._total = run.hyperparams.total_steps
        self._events = EventWriter(run_dir)
        self._state = hashlib.sha256(run.output_name.encode()).digest()
        self._step = 0

    def run(self) -> None:
        self._events.emit(PhaseChanged(phase="preparing"))
        for path in (*self._run.train_shards, *self._run.heldout_shards, f"{self._run.base_dir}/config.json"):
            Path(path).read_bytes()
        self._start()
        while self._step < self._total:
            time.sleep(self._step_s)
            self._step += 1
            self._state = advance(self._state, self._step)
            point = Metrics(step=self._step, cycle=1, loss=1.0, lr=0.1, throughput=1.0, tokens_per_s=1.0, grad_norm=1.0)
            self._events.emit(point)
            reason = read_control(self._run_dir)
            if reason is not None or self._step % self._checkpoint_every == 0:
                self._checkpoint()
            if reason is not None:
                self._events.emit(Stopped(step=self._step, reason=reason))
                return
        self._export()

    def _start(self) -> None:
        if self._run.checkpoint_dir is not None:
            step, state = (Path(self._run.checkpoint_dir) / "state").read_text().split()
            self._step, self._state = int(step), bytes.fromhex(state)
        else:
            self._events.emit(PhaseChanged(phase="growing"))
            self._events.emit(Diagnosed(scores=(1.0, 2.0), new_after=(1,)))
            self._events.emit(Grown(params_before=1, params_after=2, function_preservation=0.0))
        self._events.emit(PhaseChanged(phase="training"))

    def _checkpoint(self) -> None:
        folder = self._run_dir / "checkpoints" / str(self._step)
        content = f"{self._step} {self._state.hex()}".encode()
        manifest = save(folder, {"state": content, "optimizer": self._state * REPEATS})
        self._events.emit(CheckpointSaved(step=self._step, turn_end=False, path=str(folder), manifest=manifest))

    def _export(self) -> None:
        self._events.emit(PhaseChanged(phase="exporting"))
        folder = self._run_dir / "export"
        contents = {"config.json": b'{"model_type": "llama"}', WEIGHTS_FILE: self._state.hex().encode() * REPEATS}
        manifest = save(folder, contents)
        self._events.emit(ExportSaved(path=str(folder), manifest=manifest, params=2))
        self._events.emit(Finished(result={"steps": self._step}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--step-s", type=float, required=True)
    parser.add_argument("--checkpoint-every", type=int, required=True)
    arguments = parser.parse_args()
    ChainTrainer(arguments.run_dir, arguments.step_s, arguments.checkpoint_every).run()
