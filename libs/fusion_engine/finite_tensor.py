"""Weights that are looked at while they pass by: NaN and infinity are damage, and nothing can be trained on them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fusion_engine.safetensors_stream import DamagedFileError, StoredTensor

# A number is not finite when all bits of its exponent are set. Shifted left by one, which drops the sign, it is then at
# least this, as an unsigned integer of its width (IEEE 754, 3.4; bfloat16 is the upper half of a float32).
_SMALLEST_NOT_FINITE = {
    "F16": (np.uint16, 0xF800),
    "BF16": (np.uint16, 0xFF00),
    "F32": (np.uint32, 0xFF00_0000),
    "F64": (np.uint64, 0xFFE0_0000_0000_0000),
}


@dataclass(frozen=True)
class FiniteTensor(StoredTensor):
    """A stored tensor whose chunks are checked as they are read."""

    name: str

    @classmethod
    def of(cls, name: str, tensor: StoredTensor) -> "FiniteTensor":
        return cls(tensor.path, tensor.dtype, tensor.shape, tensor.offset, name)

    @property
    def unchecked(self) -> StoredTensor:
        """The same tensor, for those who read it a second time."""
        return StoredTensor(self.path, self.dtype, self.shape, self.offset)

    def chunks(self) -> Iterator[bytes]:
        """Raises DamagedFileError at the first chunk that holds NaN or infinity."""
        for chunk in super().chunks():
            if not _finite(chunk, self.dtype):
                raise DamagedFileError(f"tensor {self.name} holds NaN or infinity")
            yield chunk


def _finite(chunk: bytes, dtype: str) -> bool:
    if dtype not in _SMALLEST_NOT_FINITE:
        return True
    integer, limit = _SMALLEST_NOT_FINITE[dtype]
    return bool((np.frombuffer(chunk, integer) << 1).max(initial=0) < limit)
