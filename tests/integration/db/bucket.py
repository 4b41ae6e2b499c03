"""A bucket in memory: what the pruner lists and deletes, and what rows say must be there."""

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta

from fusion_core.storage import ListedObject
from fusion_core.trainer_protocol import Manifest

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class MemoryBucket:
    """Every object is old enough to be pruned: only rows, and attempts that are not over, keep one."""

    def __init__(self) -> None:
        self.objects: dict[str, str] = {}  # key -> SHA-256

    def put(self, prefix: str, manifest: Manifest) -> None:
        self.objects |= {f"{prefix}/{file.rel}": file.sha256 for file in manifest.files}

    def lose(self, prefix: str) -> None:
        self.objects = {key: sha256 for key, sha256 in self.objects.items() if not key.startswith(f"{prefix}/")}

    async def list_prefix(self, prefix: str) -> AsyncIterator[ListedObject]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield ListedObject(key, 1, _LONG_AGO)

    async def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    async def abort_stale_multipart(self, min_age: timedelta) -> int:
        assert min_age > timedelta(0)
        return 0
