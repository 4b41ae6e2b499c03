"""What a trainer wrote leads nowhere but into its own run."""

import os
from pathlib import Path

import msgspec
import pytest
from fusion_core.trainer_protocol import EVENTS_CHUNK_BYTES, EventReader, FileEntry, Manifest
from fusion_core.untrusted_files import UntrustedPathError, inside, open_untrusted, read_untrusted


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"{}\n")
    return path


@pytest.mark.parametrize("named", ["/", ".", "..", "../secret", "link", "linked/secret", "a/../../secret"])
def test_a_path_out_of_the_run_is_refused(run_dir: Path, secret: Path, named: str) -> None:
    (run_dir / "link").symlink_to(secret)
    (run_dir / "linked").symlink_to(secret.parent)
    with pytest.raises(UntrustedPathError, match="leads out of"):
        inside(run_dir, run_dir / named)


def test_a_path_below_the_run_is_taken(run_dir: Path) -> None:
    assert inside(run_dir, run_dir / "a/../b/c") == run_dir / "b/c"


def test_links_pipes_and_folders_are_not_read(run_dir: Path, secret: Path) -> None:
    (run_dir / "link").symlink_to(secret)
    os.mkfifo(run_dir / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(UntrustedPathError):
            open_untrusted(run_dir / name)
    with pytest.raises(FileNotFoundError):
        open_untrusted(run_dir / "nothing")
    with pytest.raises(UntrustedPathError, match="larger than 2 bytes"):
        read_untrusted(secret, 2)
    assert read_untrusted(secret, 3) == b"{}\n"


def test_events_are_no_link_and_no_endless_line(run_dir: Path, secret: Path) -> None:
    events = run_dir / "events.jsonl"
    events.symlink_to(secret)
    with pytest.raises(UntrustedPathError):
        list(EventReader(run_dir).read())
    events.unlink()
    events.write_bytes(b"x" * EVENTS_CHUNK_BYTES)
    with pytest.raises(UntrustedPathError, match="a line of more than"):
        list(EventReader(run_dir).read())


def test_many_events_are_taken_in_parts(run_dir: Path) -> None:
    line = b'{"type":"phase","phase":"training"}\n'
    count = EVENTS_CHUNK_BYTES // len(line) + 10
    (run_dir / "events.jsonl").write_bytes(line * count)
    reader = EventReader(run_dir)
    first, second = list(reader.read()), list(reader.read())
    assert (first[0][0], first[-1][0] + 1, second[-1][0]) == (1, second[0][0], count)


@pytest.mark.parametrize("rel", ["../x", "/etc/passwd", "a/../../x", ""])
def test_a_manifest_names_files_below_its_folder(rel: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="not a path below"):
        msgspec.convert({"files": [{"rel": rel, "size": 1, "sha256": "0"}]}, Manifest)
    with pytest.raises(ValueError, match="not a path below"):
        FileEntry(rel, 1, "0")
