"""Lines of an uploaded file: bounded in length, checked for encoding, read one at a time."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

MAX_LINE_BYTES = 8 * 1024 * 1024
_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16: its mark begins with UTF-16's
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
)


class Fault(msgspec.Struct, frozen=True):
    """Why a line (counted from 1) cannot be used and how to mend it; `code` is one of fusion_core.problems."""

    line: int
    code: str
    detail: str


class Line(NamedTuple):
    """A line without its ending; `ended` is False for a last line that has none."""

    number: int
    content: str
    ended: bool


def read_lines(path: Path) -> Iterator[Line | Fault]:
    """Yield the lines of a UTF-8 file, with LF or CRLF endings and with or without a byte order mark.

    A line that is too long, is not UTF-8 or holds a NUL comes as a Fault. Holds one line in memory, whatever the size
    of the file. Raises OSError.
    """
    with path.open("rb") as file:
        start = file.read(4)
        for mark, encoding in _OTHER_ENCODINGS:
            if start.startswith(mark):
                yield Fault(1, "invalid_encoding", f"the file is {encoding}; save it as plain UTF-8")
                return
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        number = 0
        while content := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(content) > MAX_LINE_BYTES and not content.endswith(b"\n"):
                _skip_rest_of_line(file)
                yield Fault(number, "invalid_row", f"the line is longer than {MAX_LINE_BYTES} bytes; split its text")
            else:
                yield _decode(number, content)


def _skip_rest_of_line(file: IO[bytes]) -> None:
    while (part := file.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
        pass


def _decode(number: int, content: bytes) -> Line | Fault:
    ended = content.endswith(b"\n")
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        if not ended and error.reason == "unexpected end of data":
            return truncated(number)
        detail = f"byte {error.start + 1} of the line is not UTF-8 ({error.reason}); save the file as UTF-8"
        return Fault(number, "invalid_encoding", detail)
    if "\0" in text:
        return Fault(number, "invalid_encoding", f"a NUL at character {text.index(chr(0)) + 1}; remove it")
    return Line(number, text, ended)


def truncated(number: int) -> Fault:
    """The fault of a last line that is cut off."""
    return Fault(number, "upload_truncated", "the file ends in the middle of this line; upload the whole file again")
