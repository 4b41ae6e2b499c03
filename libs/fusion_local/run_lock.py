"""One `make up` or `make demo` a data folder: whoever runs holds a lock that the kernel frees however it ends."""

import fcntl
import os
import signal
import time
from pathlib import Path
from typing import IO

import msgspec

from fusion_local.processes import STOP_DEADLINE_S, Record

_NAME = "fusion-local"
_POLL_S = 0.1


class AlreadyRunningError(RuntimeError):
    """Another `make up` or `make demo` holds this data folder."""


class RunLock:
    """`<root>/lock`, locked while a stack runs; its content says which process holds it."""

    def __init__(self, root: Path) -> None:
        self._path = root / "lock"
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Raises AlreadyRunningError."""
        file = self._path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise AlreadyRunningError(
                f"another make up or make demo runs over {self._path.parent}; "
                "end it with Ctrl-C in its terminal, or with make down"
            ) from error
        file.truncate(0)
        file.write(msgspec.json.encode(Record.of(_NAME, os.getpid())))
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def take_from_holder(self, deadline_s: float = 4 * STOP_DEADLINE_S) -> bool:
        """Ask whoever holds the lock to end, then take it; answers whether there was one.

        Raises AlreadyRunningError when the holder is still there at the deadline.
        """
        until = time.monotonic() + deadline_s
        asked = False
        while True:
            try:
                self.take()
                return asked
            except AlreadyRunningError:
                if time.monotonic() > until:
                    raise
            asked = self._ask_holder_to_end() or asked
            time.sleep(_POLL_S)

    def _ask_holder_to_end(self) -> bool:
        try:
            process = msgspec.json.decode(self._path.read_bytes(), type=Record).process()
        except msgspec.DecodeError:
            return False  # it has only just taken the lock, or is about to let go
        if process is not None:
            process.send_signal(signal.SIGTERM)
        return process is not None
