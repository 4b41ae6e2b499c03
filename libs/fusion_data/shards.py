"""Writes shards: JSONL files of bounded size, hashed while they are written; equal rows give equal bytes."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal, Self

from fusion_core import failpoints
from fusion_core.trainer_protocol import FileEntry, ShardSaved

SplitName = Literal["train", "heldout"]


class _Shard:
    """One file being written."""

    def __init__(self, path: Path) -> None:
        failpoints.hit("shard")
        self.path = path
        self.rows = self.size = 0
        self._hash = hashlib.sha256()
        self._file: IO[bytes] = path.open("wb")

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self._hash.update(line)
        self.rows += 1
        self.size += len(line)

    def finish(self, split: SplitName) -> ShardSaved:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        entry = FileEntry(rel=self.path.name, size=self.size, sha256=self._hash.hexdigest())
        return ShardSaved(path=str(self.path), split=split, rows=self.rows, file=entry)

    def abandon(self) -> None:
        """Close without caring for what is still in memory: the shard will not be used."""
        with contextlib.suppress(OSError):
            self._file.close()


class ShardWriter:
    """The shards of one split: `<split>-00000.jsonl` onward in `folder`, each of at most `shard_bytes` bytes.

    A single row that is larger makes a larger shard. `on_saved` is told of each shard once it is on disk.
    """

    def __init__(
        self, folder: Path, split: SplitName, shard_bytes: int, on_saved: Callable[[ShardSaved], None]
    ) -> None:
        self._folder = folder
        self._split: SplitName = split
        self._shard_bytes = shard_bytes
        self._on_saved = on_saved
        self._shard: _Shard | None = None
        self.rows = self.shards = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish_shard()
        elif self._shard is not None:
            self._shard.abandon()

    def write(self, encoded: bytes) -> None:
        """Append one row, a JSON object without a line ending. Raises OSError."""
        line = encoded + b"\n"
        if self._shard is not None and self._shard.size + len(line) > self._shard_bytes:
            self._finish_shard()
        if self._shard is None:
            self._shard = _Shard(self._folder / f"{self._split}-{self.shards:05}.jsonl")
            self.shards += 1
        self._shard.write(line)
        self.rows += 1

    def _finish_shard(self) -> None:
        if self._shard is not None:
            saved = self._shard.finish(self._split)
            self._shard = None
            self._on_saved(saved)
