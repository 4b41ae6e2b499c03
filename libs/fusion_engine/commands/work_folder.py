"""Where a stand-alone training keeps what it needs to go on after an interruption: a run directory like a worker's."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from fusion_core.heldout import is_held_out, row_hash
from fusion_core.trainer_protocol import CONTROL_FILE, RUN_FILE, EngineRun, Run, read_run, write_run

from fusion_engine.checkpoint import latest_checkpoint
from fusion_engine.local_shards import local_shards
from fusion_engine.outcomes import RejectedError
from fusion_engine.run_directory import CHECKPOINTS_FOLDER

_HELDOUT_PERCENT = 2


def named_shards(data: Sequence[Path], folder: Path) -> tuple[str, ...]:
    """Files and folders that a person named, as JSONL; plain text is rewritten in the work folder.

    Raises RejectedError as `local_shards` does.
    """
    texts = folder / "text"
    texts.mkdir(parents=True, exist_ok=True)
    return local_shards(data, texts)


def split_rows(shards: Iterable[str], work_folder: Path) -> tuple[Path, Path]:
    """(training rows, held-out rows) of JSONL files: two rows of a hundred, chosen by content, are held out.

    Equal rows come to lie on the same side. Where chance holds out none, the last row is. The files' names tell their
    content. Raises RejectedError dataset_empty for fewer than two rows.
    """
    folder = work_folder / "data"
    folder.mkdir(parents=True, exist_ok=True)
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    counts, content = [0, 0], hashlib.sha256()
    last = b""
    with train.open("wb") as training, heldout.open("wb") as held:
        for line in _lines(shards):
            chosen = is_held_out(row_hash(line), _HELDOUT_PERCENT)
            (held if chosen else training).write(line + b"\n")
            counts[chosen] += 1
            content.update(line + b"\n")
            last = last if chosen else line
        if not counts[True]:
            held.write(last + b"\n")
    if sum(counts) < 2 or not counts[False]:
        raise RejectedError("dataset_empty", f"DATA has {sum(counts)} rows; training takes at least two different ones")
    name = content.hexdigest()[:16]
    return train.rename(folder / f"{name}-train.jsonl"), heldout.rename(folder / f"{name}-heldout.jsonl")


def _lines(shards: Iterable[str]) -> Iterator[bytes]:
    for shard in shards:
        with Path(shard).open("rb") as file:
            yield from (line.strip() for line in file if not line.isspace())


def write_attempt(folder: Path, run: EngineRun) -> Path | None:
    """Write run.json into `folder`, to go on from its newest checkpoint; returns that, None for a fresh start.

    Raises RejectedError validation_failed where the folder belongs to a training with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONTROL_FILE).unlink(missing_ok=True)
    checkpoint = latest_checkpoint(folder / CHECKPOINTS_FOLDER)
    if (folder / RUN_FILE).exists() and checkpoint is not None and _settings(read_run(folder)) != _settings(run):
        raise RejectedError(
            "validation_failed",
            f"{folder} holds a training with other settings; repeat those to go on with it, or delete the folder",
        )
    resumed = str(checkpoint) if checkpoint is not None else None
    write_run(folder, msgspec.structs.replace(run, checkpoint_dir=resumed))  # type: ignore[arg-type]
    return checkpoint


def _settings(run: Run | EngineRun) -> dict[str, object]:
    """What must not change between two attempts."""
    free = ("checkpoint_dir", "checkpoint_every_s", "metrics_every_s")
    return {name: value for name, value in msgspec.to_builtins(run).items() if name not in free}


def drop_older_checkpoints(newest: Path) -> None:
    """A worker's daemon does this where there is one."""
    for folder in newest.parent.iterdir():
        if folder.name < newest.name and not folder.name.startswith("."):
            shutil.rmtree(folder, ignore_errors=True)
