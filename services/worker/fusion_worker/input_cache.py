"""Inputs on local disk by content hash: verified at every use, evicted least recently used first."""

import asyncio
import errno
import hashlib
import os
import shutil
from pathlib import Path

from fusion_core.storage import Storage
from fusion_core.trainer_protocol import FileEntry

from fusion_worker.metrics import Metrics


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class InputCache:
    """One folder of files named by their SHA-256."""

    def __init__(self, folder: Path, limit_bytes: int, storage: Storage, metrics: Metrics) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._storage = storage
        self._metrics = metrics
        folder.mkdir(parents=True, exist_ok=True)

    async def place(self, key: str, entry: FileEntry, destination: Path) -> None:
        """Put the object at `destination` as a hard link.

        Raises ObjectMissingError, ObjectCorruptError, OSError (ENOSPC where it cannot fit).
        """
        cached = self._folder / entry.sha256
        found = await asyncio.to_thread(self._intact, cached, entry)
        self._metrics.cache.labels("hit" if found else "miss").inc()
        if not found:
            await asyncio.to_thread(self._make_room, entry.size)
            await self._storage.download_file(key, cached, entry)
        os.utime(cached)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.link(cached, destination)

    @staticmethod
    def _intact(cached: Path, entry: FileEntry) -> bool:
        if cached.is_file() and cached.stat().st_size == entry.size and sha256_of(cached) == entry.sha256:
            return True
        cached.unlink(missing_ok=True)
        return False

    def _make_room(self, needed: int) -> None:
        """Evict until `needed` bytes fit; files still linked by a run keep their space and go later."""
        files = sorted(self._folder.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)
        used = sum(path.stat().st_size for path in files)
        for path in files:
            free = shutil.disk_usage(self._folder).free
            if used + needed <= self._limit and needed <= free:
                return
            used -= path.stat().st_size
            path.unlink()
        if needed > shutil.disk_usage(self._folder).free:
            raise OSError(errno.ENOSPC, f"{needed} bytes of input do not fit on the worker's disk")
