"""What customers saw and what was done to the cluster, one JSON object a line, in the order in which it happened."""

import threading
import time
from pathlib import Path
from typing import Any, Self

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """`at_s` are seconds since the history began; `who` is a customer, a service or the harness."""

    at_s: float
    who: str
    what: str
    data: dict[str, Any]


class History:
    """A context manager, appended to by any thread; a line is in its file before `note` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._entries: list[Entry] = []

    def note(self, who: str, what: str, **data: Any) -> None:
        with self._lock:
            entry = Entry(round(time.monotonic() - self._began, 3), who, what, data)
            self._entries.append(entry)
            self._file.write(msgspec.json.encode(entry) + b"\n")

    def of(self, what: str) -> list[Entry]:
        with self._lock:
            return [entry for entry in self._entries if entry.what == what]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
