"""One stack a data folder."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fusion_local.run_lock import AlreadyRunningError, RunLock
from fusion_local.services import stop_local

HOLDER = """
import sys, time
from pathlib import Path
from fusion_local.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.take()
print("holds", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs over the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holds\n"
        yield process
        process.kill()


def test_a_second_one_is_told_so(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    with pytest.raises(AlreadyRunningError, match="make down"):
        RunLock(tmp_path).take()
    assert holder.poll() is None


def test_the_lock_of_a_killed_one_is_free(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait(10)
    lock = RunLock(tmp_path)
    lock.take()
    lock.release()


def test_down_ends_the_one_that_runs(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    assert stop_local(tmp_path) == ["make up or make demo"]
    assert holder.wait(10) == -signal.SIGTERM


def test_down_of_nothing_does_nothing(tmp_path: Path) -> None:
    assert stop_local(tmp_path) == []
    assert stop_local(tmp_path / "absent") == []
    assert not (tmp_path / "absent").exists()
