"""Reading and writing safetensors a slice at a time, so that no model is ever held in memory.

The format (https://github.com/huggingface/safetensors#format): eight bytes of header length, little-endian; a JSON
header of {name: {dtype, shape, data_offsets}}; then the raw data, without gaps.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import torch

SHARD_BYTES = 5_000_000_000
_CHUNK_BYTES = 1024 * 1024
_HEADER_LIMIT_BYTES = 100_000_000
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES_OF_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()} | {torch.uint8: "U8"}


class DamagedFileError(ValueError):
    """The file is not whole, well-formed safetensors of finite numbers; the message says where it goes wrong."""


Wrote = Callable[[int], object]  # told of every so many bytes of tensors written


class TensorSource(Protocol):
    """Something that can be written as one tensor: its dtype by its safetensors name, its shape, its raw bytes."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def chunks(self) -> Iterator[bytes]: ...


def byte_size(source: TensorSource) -> int:
    return math.prod(source.shape) * _ITEM_BYTES[source.dtype]


def total_bytes(tensors: Mapping[str, TensorSource]) -> int:
    return sum(byte_size(source) for source in tensors.values())


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file, `offset` bytes from its start."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def chunks(self) -> Iterator[bytes]:
        left = byte_size(self)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise DamagedFileError(f"{self.path} ends {left} bytes early")
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class ZeroTensor:
    """A tensor of zeros."""

    dtype: str
    shape: tuple[int, ...]

    def chunks(self) -> Iterator[bytes]:
        left = byte_size(self)
        zeros = bytes(min(left, _CHUNK_BYTES))
        while left:
            yield zeros[:left]
            left -= min(left, len(zeros))


@dataclass(frozen=True)
class MemoryTensor:
    """A torch tensor, written in the dtype `dtype`, whatever its own."""

    tensor: torch.Tensor
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "MemoryTensor":
        return cls(tensor, _NAMES_OF_DTYPES[tensor.dtype])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def chunks(self) -> Iterator[bytes]:
        dtype = TORCH_DTYPES.get(self.dtype, self.tensor.dtype)
        for piece in torch.split(self.tensor.detach().reshape(-1), _CHUNK_BYTES // _ITEM_BYTES[self.dtype]):
            yield piece.to("cpu", dtype).view(torch.uint8).numpy().tobytes()


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name.

    Raises DamagedFileError unless every byte of the file is accounted for.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > min(size - 8, _HEADER_LIMIT_BYTES):
            raise DamagedFileError(f"the header should take {header_size} bytes, the file has {size}")
        header = file.read(header_size)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = msgspec.convert(entries, dict[str, _Entry])
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"the header is not readable: {error}") from error
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        known = entry.dtype in _ITEM_BYTES and min(entry.shape, default=0) >= 0
        if not known or start != end or stop - start != _size(entry):
            raise DamagedFileError(f"tensor {name}: {entry.dtype} {entry.shape} does not fit bytes {start} to {stop}")
        end = stop
    if 8 + header_size + end != size:
        raise DamagedFileError(f"the header describes {8 + header_size + end} bytes, the file has {size}")
    return {
        name: StoredTensor(path, entry.dtype, entry.shape, 8 + header_size + entry.data_offsets[0])
        for name, entry in tensors.items()
    }


def _size(entry: _Entry) -> int:
    return math.prod(entry.shape) * _ITEM_BYTES[entry.dtype]


def write_file(path: Path, tensors: Mapping[str, TensorSource], wrote: Wrote | None = None) -> None:
    """Write one safetensors file and fsync it. Equal tensors give equal bytes, in whatever order they come."""
    ordered = _file_order(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in ordered:
        source = tensors[name]
        end = offset + byte_size(source)
        header[name] = {"dtype": source.dtype, "shape": list(source.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in ordered:
            for chunk in tensors[name].chunks():
                file.write(chunk)
                if wrote is not None:
                    wrote(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def write_model(
    folder: Path, tensors: Mapping[str, TensorSource], shard_bytes: int = SHARD_BYTES, wrote: Wrote | None = None
) -> None:
    """Write a model's tensors as Hugging Face lays them out: one file, or shards of at most `shard_bytes` and an index.

    A tensor larger than a shard gets one of its own. Raises OSError with ENOSPC, before anything is written, when the
    disk has no room for all of it.
    """
    total = total_bytes(tensors)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise OSError(errno.ENOSPC, f"the model takes {total} bytes and {free} are free", str(folder))
    shards: list[dict[str, TensorSource]] = [{}]
    used = 0
    for name in _file_order(tensors):
        size = byte_size(tensors[name])
        if shards[-1] and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensors[name]
        used += size
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0], wrote)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        filename = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / filename, shard, wrote)
        weight_map.update(dict.fromkeys(shard, filename))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _file_order(tensors: Mapping[str, TensorSource]) -> list[str]:
    """Widest items first, so that every tensor is aligned to its item size; then by name."""
    return sorted(tensors, key=lambda name: (-_ITEM_BYTES[tensors[name].dtype], name))
