"""Which rows are held out: decided by content alone, so that a row is held out wherever it comes again."""

import hashlib

_BYTES = 8
_RANGE: int = 2 ** (8 * _BYTES)


def row_hash(content: bytes) -> int:
    """A row's place in [0, 2**64)."""
    return int.from_bytes(hashlib.sha256(content).digest()[:_BYTES], "big")


def is_held_out(place: int, percent: int) -> bool:
    """The lowest `percent` of the range are."""
    return place < _RANGE * percent // 100
