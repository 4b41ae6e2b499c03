"""Tensors put together of others while they are written, so that a widened layer is never in memory as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion_engine.safetensors_stream import StoredTensor, TensorSource, byte_size

_BAND_BYTES = 1024 * 1024


@dataclass(frozen=True)
class CopiedRows:
    """The rows `rows` of a stored matrix, or entries of a vector, in that order; a row may come more than once."""

    tensor: StoredTensor
    rows: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.tensor.shape[1:])

    def chunks(self) -> Iterator[bytes]:
        row_bytes = byte_size(self) // len(self.rows)
        buffered = bytearray()
        with self.tensor.path.open("rb") as file:
            for row in self.rows:
                file.seek(self.tensor.offset + row * row_bytes)
                buffered += file.read(row_bytes)
                if len(buffered) >= _BAND_BYTES:
                    yield bytes(buffered)
                    buffered.clear()
        yield bytes(buffered)


@dataclass(frozen=True)
class JoinedTensor:
    """`old` and `new` side by side along dimension 0 or 1."""

    old: TensorSource
    new: TensorSource
    dim: int

    @property
    def dtype(self) -> str:
        return self.old.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.old.shape)
        shape[self.dim] += self.new.shape[self.dim]
        return tuple(shape)

    def chunks(self) -> Iterator[bytes]:
        if self.dim == 0:
            yield from self.old.chunks()
            yield from self.new.chunks()
            return
        rows = self.shape[0]
        rows_a_band = max(1, _BAND_BYTES * rows // byte_size(self))
        for old, new in zip(_bands(self.old, rows_a_band), _bands(self.new, rows_a_band), strict=True):
            yield np.concatenate([old, new], axis=1).tobytes()


def _bands(source: TensorSource, rows: int) -> Iterator[NDArray[np.uint8]]:
    """The raw bytes of `rows` whole rows at a time; the last band may have fewer."""
    row_bytes = byte_size(source) // source.shape[0]
    buffered = bytearray()
    for chunk in source.chunks():
        buffered += chunk
        whole = len(buffered) // (rows * row_bytes) * rows * row_bytes
        for start in range(0, whole, rows * row_bytes):
            yield np.frombuffer(bytes(buffered[start : start + rows * row_bytes]), np.uint8).reshape(rows, row_bytes)
        del buffered[:whole]
    if buffered:
        yield np.frombuffer(bytes(buffered), np.uint8).reshape(-1, row_bytes)
