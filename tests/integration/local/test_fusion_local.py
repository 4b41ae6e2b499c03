"""The command behind make up and make down: it starts all, ends all, and survives what people do to it."""

import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from fusion_local.processes import Record, base_environment, kill_leftovers

DEADLINE_S = 90


class Up:
    """`fusion-local up` over a folder, as a person's terminal starts it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root.parent / f"up-{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fusion_local", "up", "--root", str(root)],
                env=base_environment() | {"COLUMNS": "60"},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - CI may ignore it
            )

    def output(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def ready(self) -> "Up":
        self.until(lambda: "Ctrl-C stops everything" in self.output())
        return self

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    kill_leftovers(folder)


@pytest.fixture
def start(root: Path) -> Iterator[Callable[[], Up]]:
    started: list[Up] = []

    def begin() -> Up:
        started.append(Up(root))
        return started[-1]

    yield begin
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait(DEADLINE_S)


def of_folder(root: Path) -> list[psutil.Process]:
    """Every process that names the folder, works in it, or was given its secrets."""
    marks = [str(root)]
    if (root / "secrets.json").exists():
        marks += msgspec.json.decode((root / "secrets.json").read_bytes(), type=dict[str, str]).values()
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "cwd"]):
        told = [*(process.info["cmdline"] or ()), *(process.info["environ"] or {}).values(), process.info["cwd"] or ""]
        if process.pid != os.getpid() and any(mark in "\0".join(told) for mark in marks):
            found.append(process)
    return found


def nothing_left(root: Path) -> bool:
    _, alive = psutil.wait_procs(of_folder(root), timeout=15)
    return not alive


def access(root: Path) -> dict[str, str]:
    return dict(re.findall(r"export (\w+)=(.+)", (root / "env").read_text()))


def operator_access(root: Path) -> dict[str, str]:
    return dict(re.findall(r"export (\w+)=(.+)", (root / "operator.env").read_text()))


def admin_prunes(root: Path) -> bool:
    """A command that speaks to database and bucket, as an operator types it in a shell of their own."""
    program = Path(sysconfig.get_path("scripts")) / "fusion-admin"
    script = ["sh", "-c", f'. "$0" && exec {shlex.quote(str(program))} prune --dry-run', str(root / "operator.env")]
    done = subprocess.run(script, env=base_environment(), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0


def admin_answers(root: Path) -> int:
    found = operator_access(root)
    headers = {"Authorization": f"Bearer {found['FUSION_OPERATOR_TOKEN']}"}
    return httpx.get(f"{found['FUSION_ADMIN_URL']}/admin/audit", headers=headers, timeout=10).status_code


def base_models(root: Path) -> int:
    found = access(root)
    headers = {"Authorization": f"Bearer {found['FUSION_API_KEY']}"}
    return httpx.get(f"{found['FUSION_API_URL']}/api/base-models", headers=headers, timeout=10).status_code


def pid_of(root: Path, name: str) -> int:
    records = msgspec.json.decode((root / "processes.json").read_bytes(), type=list[Record])
    return next(record.pid for record in records if record.name == name)


def run(root: Path, command: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "fusion_local", command, "--root", str(root)]
    return subprocess.run(argv, env=base_environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_up_serves_and_ctrl_c_leaves_nothing(root: Path, start: Callable[[], Up]) -> None:
    up = start().ready()
    assert len(of_folder(root)) >= 8, "the three stores, two services, two workers and the command"
    key = access(root)["FUSION_API_KEY"]
    assert key in up.output()
    assert f"{operator_access(root)['FUSION_ADMIN_URL']}/admin" in up.output()
    assert operator_access(root)["FUSION_OPERATOR_TOKEN"] not in up.output()
    assert admin_answers(root) == 200
    assert admin_prunes(root)
    assert base_models(root) == 200
    private = [root / "env", root / "secrets.json", root / "account", root / "operator.env"]
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert key.encode() not in (root / "logs" / "api.log").read_bytes()

    second = run(root, "up")
    assert second.returncode == 1
    assert "another make up or make demo runs" in second.stdout
    assert base_models(root) == 200

    assert up.end(signal.SIGINT) == 0
    assert nothing_left(root)

    again = start().ready()
    assert access(root)["FUSION_API_KEY"] == key
    assert key not in again.output()
    assert base_models(root) == 200
    assert again.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert nothing_left(root)


def test_a_service_that_dies_is_reported_and_the_rest_ends(root: Path, start: Callable[[], Up]) -> None:
    up = start().ready()
    os.kill(pid_of(root, "orchestrator"), signal.SIGKILL)
    assert up.process.wait(DEADLINE_S) == 1
    assert "orchestrator ended with -9" in up.output()
    assert nothing_left(root)


def test_a_crash_leaves_nothing_that_the_next_start_cannot_use(root: Path, start: Callable[[], Up]) -> None:
    up = start().ready()
    key = access(root)["FUSION_API_KEY"]
    up.end(signal.SIGKILL)
    again = start().ready()
    assert access(root)["FUSION_API_KEY"] == key
    assert base_models(root) == 200

    down = run(root, "down")
    assert down.returncode == 0
    assert "Ended: make up or make demo" in down.stdout
    assert again.process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert nothing_left(root)
    assert "Nothing was running." in run(root, "down").stdout


@pytest.mark.parametrize("after", ["Starting Fusion", "PostgreSQL", "api on", "orchestrator"])
def test_ctrl_c_while_starting_leaves_nothing(root: Path, start: Callable[[], Up], after: str) -> None:
    up = start()
    up.until(lambda: after in up.output())
    assert up.end(signal.SIGINT) == 0
    assert nothing_left(root)
