"""Reading a safetensors file's header without any library that could execute code or load weights.

The format (https://github.com/huggingface/safetensors#format): eight bytes, the header's length as a little-endian
unsigned integer; the header, a JSON object of name -> {dtype, shape, data_offsets}; then the tensors, back to back.
"""

import math
from pathlib import Path

import msgspec

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LENGTH_BYTES = 8
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


class HeaderError(ValueError):
    """The file is not a whole safetensors file; the message says where it breaks."""


class TensorInfo(msgspec.Struct, frozen=True):
    """One entry of a header. `data_offsets` are [begin, end) in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def items(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file by name, every offset checked against dtype, shape and the file's size.

    Raises HeaderError, or OSError when the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise HeaderError(f"is cut off: the header should be {length} bytes and the whole file is {size}")
        if length > MAX_HEADER_BYTES:
            raise HeaderError(f"has a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
        raw = file.read(length)
    tensors = _parse(raw)
    _check_layout(tensors, size - _LENGTH_BYTES - length)
    return tensors


def _parse(raw: bytes) -> dict[str, TensorInfo]:
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        return {name: msgspec.json.decode(entry, type=TensorInfo) for name, entry in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HeaderError(f"has a header that is not valid: {error}") from error


def _check_layout(tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    """The tensors fill the data exactly: in range, of the size their shape says, no gap and no overlap."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda entry: entry[1].data_offsets):
        if tensor.dtype not in ITEM_BYTES:
            raise HeaderError(f"has tensor {name!r} of unknown dtype {tensor.dtype!r}")
        if any(dimension < 0 for dimension in tensor.shape):
            raise HeaderError(f"has tensor {name!r} with a negative dimension")
        begin, end = tensor.data_offsets
        if begin != position:
            raise HeaderError(f"has tensor {name!r} at byte {begin} of the data; the one before it ends at {position}")
        if end - begin != tensor.items * ITEM_BYTES[tensor.dtype]:
            raise HeaderError(f"has tensor {name!r} in {end - begin} bytes, which its shape and dtype contradict")
        position = end
    if position != data_bytes:
        raise HeaderError(f"holds {data_bytes} bytes of data and its header describes {position}")
