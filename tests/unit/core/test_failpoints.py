"""Failpoints: killed at the asked hit and no other, once if so asked, or a full disk instead."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fusion_core import failpoints

SCRIPT = """
from fusion_core import failpoints
for number in range(5):
    failpoints.hit("other")
    failpoints.hit("step")
    print(number, flush=True)
"""


def run(spec: str) -> tuple[int, int]:
    """(return code, hits survived)"""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"FUSION_FAILPOINT": spec},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, len(done.stdout.splitlines())


@pytest.mark.parametrize(("spec", "survived"), [("step", 0), ("step:1", 0), ("step:3", 2)])
def test_the_nth_hit_kills(spec: str, survived: int) -> None:
    assert run(spec) == (-signal.SIGKILL, survived)


def test_other_names_do_nothing() -> None:
    assert run("nowhere") == (0, 5)


def test_with_a_file_it_kills_once_across_restarts(tmp_path: Path) -> None:
    spec = f"step:2@{tmp_path / 'fired'}"
    assert run(spec) == (-signal.SIGKILL, 1)
    assert (tmp_path / "fired").exists()
    assert run(spec) == (0, 5)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_hits", 0)
    monkeypatch.setenv("FUSION_FAILPOINT", "export.before:2=enospc")
    failpoints.hit("export.before")
    with pytest.raises(OSError, match="space") as caught:
        failpoints.hit("export.before")
    assert caught.value.errno == errno.ENOSPC
    failpoints.hit("export.before")


def test_a_spec_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_FAILPOINT", "step:often")
    with pytest.raises(ValueError, match="is not name"):
        failpoints.hit("step")


def test_unset_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSION_FAILPOINT", raising=False)
    failpoints.hit("step")
