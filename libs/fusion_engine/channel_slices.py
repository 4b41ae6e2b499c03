"""Chosen rows or columns of stored tensors, read a band at a time: a model is contracted without loading it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion_engine.base_folder import BaseFolder
from fusion_engine.safetensors_stream import DamagedFileError, StoredTensor, TensorSource, byte_size

_BAND_BYTES = 8 * 1024 * 1024
Channels = NDArray[np.int64]


@dataclass(frozen=True)
class SelectedRows:
    """The rows `kept`, ascending, of a matrix; or the entries, of a vector."""

    tensor: StoredTensor
    kept: Channels

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.kept), *self.tensor.shape[1:])

    def chunks(self) -> Iterator[bytes]:
        for first, band in _bands(self.tensor):
            inside = self.kept[(self.kept >= first) & (self.kept < first + len(band))]
            if len(inside):
                yield band[inside - first].tobytes()


@dataclass(frozen=True)
class SelectedColumns:
    """The columns `kept`, ascending, of a matrix."""

    tensor: StoredTensor
    kept: Channels

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.tensor.shape[0], len(self.kept))

    def chunks(self) -> Iterator[bytes]:
        for _, band in _bands(self.tensor):
            columns = band.reshape(len(band), self.tensor.shape[1], -1)
            yield columns[:, self.kept].tobytes()


def contracted_tensors(base: BaseFolder, kept: list[Channels]) -> Mapping[str, TensorSource]:
    """Where each tensor of the contracted model comes from; layer l keeps the FFN channels `kept[l]`."""
    tensors: dict[str, TensorSource] = dict(base.tensors)
    for name, tensor in base.tensors.items():
        place = base.family.split(name)
        if place is None:
            continue
        layer, inner = place
        dimension = base.family.ffn_channels_dim(inner)
        if dimension is not None:
            tensors[name] = (SelectedRows, SelectedColumns)[dimension](tensor, kept[layer])
    return tensors


def _bands(tensor: StoredTensor) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(number of its first row, whole rows of raw bytes) through the tensor; a band is about 8 MiB or one row."""
    rows = tensor.shape[0]
    row_bytes = byte_size(tensor) // math.prod(tensor.shape[:1])
    step = max(1, _BAND_BYTES // row_bytes)
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            content = file.read(count * row_bytes)
            if len(content) != count * row_bytes:
                raise DamagedFileError(f"{tensor.path} ends early")
            yield first, np.frombuffer(content, dtype=np.uint8).reshape(count, row_bytes)
