"""Counts rows that stand in a dataset more than once, in bounded memory."""

from array import array
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

_BUCKETS = 256
_IN_MEMORY = 1_000_000  # hashes, 8 MB; more go to disk


class DuplicateCounter:
    """Counts repeated 64-bit hashes. Use as a context manager.

    Hashes lie in 256 buckets by their first byte and spill to disk, 8 bytes a row, once there are a million: 800 MB of
    disk for the hundred million rows that a dataset may have, and one bucket of 390,625 hashes in memory. Two rows
    that differ are taken for one with a probability of at most n^2 / 2^65: 0.0003 for a hundred million rows.
    """

    def __init__(self, scratch: Path | None = None, in_memory: int = _IN_MEMORY) -> None:
        self._folder = TemporaryDirectory(dir=scratch, prefix="hashes-")
        self._limit = in_memory
        self._size = 0
        self._buckets = [array("Q") for _ in range(_BUCKETS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def add(self, digest: int) -> None:
        """Take a hash in [0, 2**64). Raises OSError where the disk is full."""
        self._buckets[digest >> 56].append(digest)
        self._size += 1
        if self._size >= self._limit:
            self._spill()

    def count(self) -> int:
        """How many rows could be left out without losing a text: rows less distinct rows."""
        repeated = 0
        for number, bucket in enumerate(self._buckets):
            path = self._path(number)
            hashes = array("Q")
            if path.exists():
                hashes.frombytes(path.read_bytes())
            hashes.extend(bucket)
            repeated += len(hashes) - len(set(hashes))
        return repeated

    def _spill(self) -> None:
        for number, bucket in enumerate(self._buckets):
            with self._path(number).open("ab") as file:
                bucket.tofile(file)
            self._buckets[number] = array("Q")
        self._size = 0

    def _path(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number:03}"
