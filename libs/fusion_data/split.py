"""Which rows are held out: decided by a row's content alone, so that the same row is held out in every upload."""

import hashlib

_HASH_BYTES = 8
_HASH_RANGE: int = 2 ** (8 * _HASH_BYTES)


def row_hash(content: bytes) -> int:
    """A row's place in [0, 2**64)."""
    return int.from_bytes(hashlib.sha256(content).digest()[:_HASH_BYTES], "big")


class Split:
    """Holds out the rows whose hash is in the lowest `percent` of the range.

    So that neither side is ever empty, the lowest hash of the dataset is held out and the highest is trained on,
    whatever `percent` says; where all rows are alike, the first is held out. Repeated rows stay on one side.
    """

    def __init__(self, percent: int, smallest_hash: int, largest_hash: int) -> None:
        if not 0 <= percent <= 100:
            raise ValueError(f"heldout_percent is {percent}, not between 0 and 100")
        self._threshold = _HASH_RANGE * percent // 100
        self._smallest = smallest_hash
        self._largest = largest_hash
        self._all_alike = smallest_hash == largest_hash
        self._seen = 0

    def holds_out(self, content: bytes) -> bool:
        """Whether this row is held out; call once a row, in order."""
        self._seen += 1
        if self._all_alike:
            return self._seen == 1
        digest = row_hash(content)
        if digest in (self._smallest, self._largest):
            return digest == self._smallest
        return digest < self._threshold
