"""A trainer that was taken over cannot make the daemon read, upload or delete what is not in its run."""

from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from fusion_core.db.attempts import Attempt
from fusion_core.trainer_protocol import CheckpointSaved, EventWriter, ExportSaved, FileEntry, Manifest, ShardSaved
from fusion_core.untrusted_files import UntrustedPathError
from fusion_worker.events_pump import EventsPump
from fusion_worker.stall_watch import StallWatch
from fusion_worker.uploads import upload_folder

MANIFEST = Manifest((FileEntry("weights", 1, "0"),))


@pytest.mark.parametrize("path", ["/", "..", "out"])
@pytest.mark.parametrize("kind", ["checkpoint", "export", "shard"])
async def test_a_path_out_of_the_run_ends_the_attempt(run_dir: Path, path: str, kind: str) -> None:
    (run_dir / "out").symlink_to("/")
    named = str(run_dir / path)
    writer = EventWriter(run_dir)
    writer.emit(
        {
            "checkpoint": CheckpointSaved(step=1, turn_end=False, path=named, manifest=MANIFEST),
            "export": ExportSaved(path=named, manifest=MANIFEST, params=1),
            "shard": ShardSaved(path=named, split="train", rows=1, file=MANIFEST.files[0]),
        }[kind]
    )
    writer.close()
    taken: list[CheckpointSaved] = []

    async def take(saved: CheckpointSaved) -> None:
        taken.append(saved)

    nothing = cast(Any, None)
    pump = EventsPump(nothing, nothing, Attempt(uuid4(), 1, uuid4()), run_dir, take, nothing)
    with pytest.raises(UntrustedPathError):
        await pump.pump(StallWatch(60.0, 0))
    assert (taken, pump.export, pump.shards) == ([], None, [])


async def test_a_link_among_a_checkpoints_files_is_not_uploaded(run_dir: Path) -> None:
    (run_dir / "weights").symlink_to("/etc/hostname")
    with pytest.raises(UntrustedPathError):
        await upload_folder(cast(Any, None), run_dir, "jobs/x", MANIFEST)
