"""An uploaded file as a stream of bytes: decompressed, bounded, and checked against its name."""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import zstandard

from fusion_data.faults import FileError
from fusion_data.limits import LIMITS, Limits

Compression = Literal["none", "gzip", "zstd"]
_ENDINGS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_GZIP, _ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_OTHERS = (
    (codecs.BOM_UTF32_LE, "wrong_encoding", "UTF-32"),  # before UTF-16: its mark begins with UTF-16's
    (codecs.BOM_UTF32_BE, "wrong_encoding", "UTF-32"),
    (codecs.BOM_UTF16_LE, "wrong_encoding", "UTF-16"),
    (codecs.BOM_UTF16_BE, "wrong_encoding", "UTF-16"),
    (b"PK\x03\x04", "format_mismatch", "a zip archive"),
    (b"BZh", "format_mismatch", "bzip2"),
    (b"\xfd7zXZ\x00", "format_mismatch", "xz"),
)
# zstd has no way to bound what one call returns but its input: a block is 4 bytes or more and makes at most 128 KiB.
_ZSTD_INPUT_BYTES = 1024
_GZIP_BUFFER_BYTES = 128 * 1024


def split_name(filename: str) -> tuple[str, Compression]:
    """The ending that names the format, in lower case, and the compression: `a.JSONL.gz` is (".jsonl", "gzip")."""
    name = PurePosixPath(filename.lower())
    compression = _ENDINGS.get(name.suffix, "none")
    return (name.with_suffix("") if compression != "none" else name).suffix, compression


class Source:
    """One file of a dataset. `consumed` says how much of it has been read, of its `size` on disk.

    `scratch` is a folder for what cannot be read as a stream; without it the system's own is used. `watch` is called
    with the source each time a little more of it has been read, rows or none, and may raise to end the reading.
    """

    def __init__(
        self,
        path: Path,
        filename: str,
        limits: Limits = LIMITS,
        scratch: Path | None = None,
        watch: "Watch" = lambda _: None,
    ) -> None:
        self.path = path
        self.filename = filename
        self.limits = limits
        self.scratch = scratch
        self.watch = watch
        self.ending, self.compression = split_name(filename)
        self.size = path.stat().st_size
        self.consumed = 0
        self.decompressed = 0

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The decompressed content. Opening and reading raise FileError, or OSError of the disk."""
        with self.path.open("rb") as file:
            _check_compression(_peek(file), self.compression)
            raw = _Decompressed(self, file)
            with io.BufferedReader(raw, 256 * 1024) as stream:
                yield stream

    def check_content(self, start: bytes) -> None:
        """Whether the decompressed file begins as a text does. Raises FileError."""
        for mark, rule, name in _OTHERS:
            if start.startswith(mark):
                raise FileError(rule, f"the content is {name}")
        if start.startswith((_GZIP, _ZSTD)):
            raise FileError("format_mismatch", "the content is compressed twice")
        if start.startswith(PARQUET):
            raise FileError("format_mismatch", f"the content is Parquet, and the name ends in {self.ending}")


Watch = Callable[[Source], None]


def _peek(file: IO[bytes]) -> bytes:
    start = file.read(4)
    file.seek(0)
    return start


def _check_compression(start: bytes, named: Compression) -> None:
    found: Compression = "none"
    if start.startswith(_GZIP):
        found = "gzip"
    elif start == _ZSTD or (start[1:] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50):  # RFC 8878: skippable frames
        found = "zstd"
    if found != named and (start or named != "none"):
        content = {"none": "not compressed", "gzip": "gzip", "zstd": "zstd"}
        names = {"none": "no .gz or .zst", "gzip": ".gz", "zstd": ".zst"}
        raise FileError("format_mismatch", f"the content is {content[found]}, and the name has {names[named]}")


class _Decompressed(io.RawIOBase):
    """Counts what goes in and comes out, and stops a file that expands too far."""

    def __init__(self, source: Source, file: IO[bytes]) -> None:
        self._source = source
        self._file = file
        self._chunks = _READERS[source.compression](file, source.limits)
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._chunk:
            chunk = next(self._chunks, None)
            self._source.consumed = self._file.tell()
            if chunk is None:
                return 0
            self._count(len(chunk))
            self._source.watch(self._source)
            self._chunk = memoryview(chunk)
        size = min(len(buffer), len(self._chunk))
        buffer[:size] = self._chunk[:size]
        self._chunk = self._chunk[size:]
        return size

    def _count(self, size: int) -> None:
        source, limits = self._source, self._source.limits
        source.decompressed += size
        if source.decompressed > limits.file_bytes:
            raise FileError("expands_too_far", f"more than {limits.file_bytes} bytes when it is decompressed")
        allowed = max(limits.expansion_from_bytes, limits.expansion * self._file.tell())
        if source.compression != "none" and source.decompressed > allowed:
            times = source.decompressed // max(1, self._file.tell())
            raise FileError("expands_too_far", f"{times} times its size; the limit is {limits.expansion} times")


def _plain_chunks(file: IO[bytes], _: Limits) -> Iterator[bytes]:
    while chunk := file.read(256 * 1024):
        yield chunk


def _gzip_chunks(file: IO[bytes], _: Limits) -> Iterator[bytes]:
    """Also of several members one after another, as `cat a.gz b.gz` makes them (RFC 1952)."""
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while chunk := stream.read(_GZIP_BUFFER_BYTES):
                yield chunk
    except EOFError:
        raise FileError("cut_off_file", "the gzip stream ends too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FileError("damaged_file", f"the gzip stream is damaged: {error}") from None


def _zstd_chunks(file: IO[bytes], limits: Limits) -> Iterator[bytes]:
    """Frame after frame (RFC 8878). The library's stream reader is silent about a frame that is cut off."""
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=limits.zstd_window_bytes)
        frame, fed = decompressor.decompressobj(), False
        while part := file.read(_ZSTD_INPUT_BYTES):
            while part:
                chunk, fed = frame.decompress(part), True
                if chunk:
                    yield chunk
                part = b""
                if frame.eof:
                    part, frame, fed = frame.unused_data, decompressor.decompressobj(), False
    except zstandard.ZstdError as error:
        raise FileError("damaged_file", f"the zstd stream cannot be read: {error}") from None
    if fed:
        raise FileError("cut_off_file", "the zstd stream ends too early")


_READERS = {"none": _plain_chunks, "gzip": _gzip_chunks, "zstd": _zstd_chunks}
