"""Child processes that never outlive us: each in its own session, recorded on disk, killed as a tree."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import msgspec
import psutil
from fusion_core.parent_death import die_with_parent

STOP_DEADLINE_S = 20.0
LEFTOVER_DEADLINE_S = 5.0
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildDiedError(RuntimeError):
    """A child ended when it should run; the message has the end of its log."""


class Record(msgspec.Struct, frozen=True):
    """A process as written to disk. The create time tells it from a later process of the same number."""

    name: str
    pid: int
    created: float

    @classmethod
    def of(cls, name: str, pid: int) -> Self:
        """Raises psutil.NoSuchProcess."""
        return cls(name, pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) < 1:
                return process
        return None


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """What asks us to end waits for the end of the block: no child is started that is not in the books yet."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers belong to the main thread, which signals do not interrupt here
        return
    waiting: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: waiting.append(number)) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


def kill_tree(pid: int) -> None:
    """SIGKILL a process and every descendant, in whatever session; returns when they are gone."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=STOP_DEADLINE_S)


class Processes:
    """The children of one embedded stack."""

    def __init__(self, root: Path) -> None:
        self._record = root / "processes.json"
        self._logs = root / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._signals: dict[str, signal.Signals] = {}

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Start `argv` with exactly this environment; its output goes to logs/<name>.log. For the main thread only."""
        with self.log_path(name).open("ab") as log, signals_deferred():
            child = subprocess.Popen(
                list(argv),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
                preexec_fn=partial(die_with_parent, stop_signal),  # noqa: PLW1509 - it only makes one system call
            )
            self._children[name] = child
            self._signals[name] = stop_signal
            self._write()

    def log_path(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def pid(self, name: str) -> int:
        return self._children[name].pid

    def check(self) -> None:
        """Raises ChildDiedError for the first child that has ended."""
        for name, child in self._children.items():
            code = child.poll()
            if code is not None:
                tail = self.log_path(name).read_text(errors="replace")[-2000:]
                raise ChildDiedError(f"{name} ended with {code}. The end of {self.log_path(name)}:\n{tail}")

    def kill(self, name: str) -> None:
        """SIGKILL a child and its whole tree, as a crash of its machine would."""
        child = self._children.pop(name)
        kill_tree(child.pid)
        child.wait(STOP_DEADLINE_S)
        self._write()

    def stop(self, name: str, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Ask a child to end; kill its tree if it has not by the deadline."""
        child = self._children.pop(name, None)
        if child is None:
            return
        descendants = _descendants(child.pid)
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(self._signals[name])
        try:
            child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            kill_tree(child.pid)
            child.wait(STOP_DEADLINE_S)
        for orphan in descendants:
            kill_tree(orphan.pid)
        self._write()

    def stop_all(self) -> None:
        """In the reverse order of starting."""
        for name in reversed(list(self._children)):
            self.stop(name)

    def _write(self) -> None:
        records = []
        for name, child in self._children.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                records.append(Record.of(name, child.pid))
        temporary = self._record.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(records))
        temporary.replace(self._record)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_leftovers(root: Path) -> list[str]:
    """End what a crashed run left behind; answers the names. A number that was given to another process is spared."""
    try:
        records = msgspec.json.decode((root / "processes.json").read_bytes(), type=list[Record])
    except (FileNotFoundError, msgspec.DecodeError):
        return []
    killed = []
    for record in reversed(records):
        process = record.process()
        if process is not None:
            end_orphan(process, signal.SIGINT if record.name == "postgres" else signal.SIGTERM)
            killed.append(record.name)
    (root / "processes.json").unlink(missing_ok=True)
    return killed


def end_orphan(process: psutil.Process, stop_signal: signal.Signals) -> None:
    """End a process that is no child of ours, and its descendants: first asked, then killed."""
    family = [*_descendants(process.pid), process]
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(stop_signal)
    psutil.wait_procs([process], timeout=LEFTOVER_DEADLINE_S)
    for member in family:
        if member.is_running():
            kill_tree(member.pid)
    psutil.wait_procs(family, timeout=STOP_DEADLINE_S)


def base_environment() -> dict[str, str]:
    """What every child may inherit: nothing of ours but the way to Python and the locale."""
    allowed = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TERM", "COLUMNS", "FUSION_FAILPOINT", "PYTHONPATH")
    return {name: os.environ[name] for name in allowed if name in os.environ}


def wait_until(ready: Callable[[], bool], what: str, processes: Processes, deadline_s: float = 60.0) -> None:
    """Poll the callable `ready` until it is true. Raises ChildDiedError or TimeoutError."""
    until = time.monotonic() + deadline_s
    while not ready():
        processes.check()
        if time.monotonic() > until:
            raise TimeoutError(f"{what} was not ready within {deadline_s:.0f} s; see its log")
        time.sleep(0.05)
