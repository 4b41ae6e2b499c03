"""Checkpoints behind training's back: what is copied, what is waited for, and that a failure to write is heard."""

import errno
import threading
from pathlib import Path

import msgspec
import pytest
import torch
from engine_runs import MakeRun, exported, last_checkpoint, of_type
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import CheckpointSaved
from fusion_engine import checkpoint_writer
from fusion_engine.checkpoint import CheckpointState, TrainedTensors, identity_of, read_tensors
from fusion_engine.checkpoint_writer import CheckpointWriter
from fusion_engine.progress import Progress
from fusion_engine.run import execute


def state_at(step: int) -> CheckpointState:
    return CheckpointState(
        format_version=2,
        identity="x",
        hyperparams=Hyperparams(),
        world_size=1,
        progress=Progress(step=step),
        random_states=(),
    )


def tensors_of(value: float) -> TrainedTensors:
    moments = {f"w.{key}": torch.full((3,), value) for key in ("exp_avg", "exp_avg_sq")}
    return TrainedTensors({"w": torch.full((3,), value)}, moments | {"w.step": torch.tensor(value)})


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, write = threading.Event(), checkpoint_writer.write_checkpoint

    def slow(*arguments: object) -> object:
        assert may_write.wait(timeout=30)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", slow)
    saved: list[CheckpointSaved] = []
    writer, tensors = CheckpointWriter(tmp_path, saved.append), tensors_of(1.0)
    writer.take(tensors)
    writer.write(state_at(1), turn_end=False)
    tensors.parameters["w"].fill_(2.0)  # the next step, while nothing of the checkpoint is on disk
    assert not saved
    may_write.set()
    writer.close()
    assert [event.step for event in saved] == [1]
    assert read_tensors(Path(saved[0].path), {"w": torch.Size([3])}).parameters["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_copy_waits_for_the_one_that_is_being_written(tmp_path: Path) -> None:
    saved: list[CheckpointSaved] = []
    writer = CheckpointWriter(tmp_path, saved.append)
    for step in range(1, 6):
        writer.take(tensors_of(float(step)))
        writer.write(state_at(step), turn_end=False)
    writer.close()
    for event in saved:
        assert read_tensors(Path(event.path), {"w": torch.Size([3])}).parameters["w"].tolist() == [event.step] * 3
    assert [event.step for event in saved] == [1, 2, 3, 4, 5]


def test_a_full_disk_is_heard_of_at_the_next_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(tmp_path, lambda _: None)
    monkeypatch.setenv("FUSION_FAILPOINT", "checkpoint_file.before:1=enospc")
    monkeypatch.setattr("fusion_core.failpoints._hits", 0)
    writer.take(tensors_of(1.0))
    writer.write(state_at(1), turn_end=False)
    with pytest.raises(OSError, match="No space") as error:
        writer.take(tensors_of(2.0))
    assert error.value.errno == errno.ENOSPC
    writer.close()


def test_a_checkpoint_is_as_large_as_what_learns(make_run: MakeRun) -> None:
    run_dir = make_run("sizes")
    execute(run_dir)
    manifest = of_type(run_dir, "CheckpointSaved")[-1].manifest
    sizes = {file.rel: file.size for file in manifest.files}
    export = of_type(run_dir, "ExportSaved")[0]
    new = 32 * 32 * 2 + 32 * 16 * 2 + 32 * 64 * 3 + 2 * 32 + 59 * 32  # a block of the tiny base, and a head
    assert 4 * new < sizes["trained.safetensors"] < 4 * new + 4096
    assert 8 * new < sizes["optimizer.safetensors"] < 8 * new + 12_288
    assert sizes["state.json"] < 64_000
    assert export.params > 2 * new


def test_resuming_twice_gives_the_same_bytes(make_run: MakeRun) -> None:
    """A checkpoint of a resumed run is as good as one of the first."""
    whole = make_run("whole")
    execute(whole)
    third = of_type(whole, "CheckpointSaved")[2].path
    once = make_run("once", checkpoint_dir=third)
    execute(once)
    twice = make_run("twice", checkpoint_dir=of_type(once, "CheckpointSaved")[5].path)
    execute(twice)
    assert exported(once) == exported(twice) == exported(whole)
    assert Path(str(last_checkpoint(twice))).name == "00000016"


def test_a_field_of_a_later_release_parts_no_job_from_its_checkpoints() -> None:
    older = msgspec.defstruct("Plan", [("layers", int), ("group", int, 1)])
    later = msgspec.defstruct("Plan", [("layers", int), ("group", int, 1), ("own_head", bool, False)])
    assert identity_of("train", older(2)) == identity_of("train", later(2))
    different = [
        ("train", later(2, own_head=True)),
        ("train", later(3)),
        ("train", later(2, 2)),
        ("contract", later(2)),
    ]
    assert len({identity_of(kind, plan) for kind, plan in [("train", later(2)), *different]}) == 5
