"""Cached inputs: used only when intact, evicted oldest first, gone from no run that still links them."""

import errno
import hashlib
import os
from pathlib import Path
from typing import cast

import pytest
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import FileEntry
from fusion_worker.input_cache import InputCache
from fusion_worker.metrics import Metrics


class Objects:
    """Storage that counts its downloads."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.downloads: list[str] = []

    def add(self, key: str, content: bytes) -> FileEntry:
        self.contents[key] = content
        return FileEntry(key, len(content), hashlib.sha256(content).hexdigest())

    async def download_file(self, key: str, path: Path, _expected: FileEntry) -> None:
        self.downloads.append(key)
        path.write_bytes(self.contents[key])


@pytest.fixture
def objects() -> Objects:
    return Objects()


def cache_of(objects: Objects, folder: Path, limit: int = 1000) -> InputCache:
    return InputCache(folder, limit, cast(Storage, objects), Metrics())


async def test_a_second_use_downloads_nothing(objects: Objects, tmp_path: Path) -> None:
    cache, entry = cache_of(objects, tmp_path / "cache"), objects.add("a", b"content")
    for run in ("1", "2"):
        await cache.place("a", entry, tmp_path / run / "a")
        assert (tmp_path / run / "a").read_bytes() == b"content"
    assert objects.downloads == ["a"]


async def test_a_damaged_file_of_the_same_size_is_fetched_again(objects: Objects, tmp_path: Path) -> None:
    cache, entry = cache_of(objects, tmp_path / "cache"), objects.add("a", b"content")
    await cache.place("a", entry, tmp_path / "1")
    (tmp_path / "cache" / entry.sha256).write_bytes(b"CONTENT")
    await cache.place("a", entry, tmp_path / "2")
    assert (tmp_path / "2").read_bytes() == b"content"
    assert objects.downloads == ["a", "a"]


async def test_the_least_recently_used_is_evicted(objects: Objects, tmp_path: Path) -> None:
    cache = cache_of(objects, tmp_path / "cache", limit=250)
    entries = {key: objects.add(key, key.encode() * 100) for key in "abc"}
    for age, key in ((20, "a"), (10, "b")):
        await cache.place(key, entries[key], tmp_path / key)
        cached = tmp_path / "cache" / entries[key].sha256
        os.utime(cached, (cached.stat().st_mtime - age,) * 2)
    await cache.place("c", entries["c"], tmp_path / "c")
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {entries[key].sha256 for key in "bc"}
    assert (tmp_path / "a").read_bytes() == b"a" * 100  # a run that links it keeps it


async def test_an_input_larger_than_the_disk_is_refused(objects: Objects, tmp_path: Path) -> None:
    cache, entry = cache_of(objects, tmp_path / "cache"), FileEntry("a", 2**62, "0" * 64)
    with pytest.raises(OSError) as caught:
        await cache.place("a", entry, tmp_path / "a")
    assert caught.value.errno == errno.ENOSPC
    assert objects.downloads == []
