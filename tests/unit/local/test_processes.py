"""Children are booked, end as a tree, and tell why they died."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from fusion_local.processes import (
    ChildDiedError,
    Processes,
    base_environment,
    kill_leftovers,
    signals_deferred,
    wait_until,
)

SLEEPER = "import time; time.sleep(60)"
# Its child has a session of its own, as trainers have; it says the child's number.
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    children = Processes(tmp_path)
    yield children
    children.stop_all()


def start(processes: Processes, name: str, code: str) -> int:
    processes.start(name, [sys.executable, "-c", code], env=base_environment())
    return processes.pid(name)


def logged(processes: Processes, name: str) -> str:
    wait_until(lambda: processes.log_path(name).read_text() != "", name, processes, 20)
    return processes.log_path(name).read_text()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def eventually(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_kill_reaches_a_grandchild_in_a_session_of_its_own(processes: Processes) -> None:
    start(processes, "parent", PARENT)
    grandchild = int(logged(processes, "parent"))
    assert not gone(grandchild)
    processes.kill("parent")
    eventually(lambda: gone(grandchild))


def test_stop_kills_a_child_that_does_not_obey(processes: Processes) -> None:
    pid = start(processes, "deaf", DEAF)
    logged(processes, "deaf")
    processes.stop("deaf", deadline_s=0.3)
    assert gone(pid)


def test_a_dead_child_is_reported_with_the_end_of_its_log(processes: Processes) -> None:
    start(processes, "api", "import sys; sys.exit('no such port [/dim]')")
    with pytest.raises(ChildDiedError, match=r"(?s)api ended with 1.*no such port"):
        wait_until(lambda: False, "the api", processes, 20)


def test_waiting_has_a_deadline(processes: Processes) -> None:
    start(processes, "slow", SLEEPER)
    with pytest.raises(TimeoutError, match="slow was not ready"):
        wait_until(lambda: False, "slow", processes, 0.2)


def test_leftovers_of_a_crash_are_ended_with_their_descendants(processes: Processes, tmp_path: Path) -> None:
    pid = start(processes, "worker", PARENT)
    grandchild = int(logged(processes, "worker"))
    assert kill_leftovers(tmp_path) == ["worker"]
    assert gone(pid)
    eventually(lambda: gone(grandchild))
    assert kill_leftovers(tmp_path) == []


def test_a_process_that_got_the_number_later_is_spared(processes: Processes, tmp_path: Path) -> None:
    pid = start(processes, "stranger", SLEEPER)
    record = tmp_path / "processes.json"
    rows = json.loads(record.read_text())
    rows[0]["created"] -= 100
    record.write_text(json.dumps(rows))
    assert kill_leftovers(tmp_path) == []
    assert not gone(pid)


def test_half_a_record_of_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "processes.json").write_text('[{"name": "po')
    assert kill_leftovers(tmp_path) == []


def test_a_signal_waits_until_the_child_is_booked() -> None:
    seen: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("ended"))
    try:
        with signals_deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            seen.append("booked")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["booked", "ended"]


def test_children_inherit_nothing_that_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_S3_SECRET_KEY", "hidden")
    assert "FUSION_S3_SECRET_KEY" not in base_environment()
