"""Lines of a UTF-8 stream: bounded in length, checked for encoding, read one at a time."""

import codecs
from collections.abc import Iterator
from typing import IO, NamedTuple

from fusion_data.faults import BadRow, bad_row
from fusion_data.source import Source

_BEYOND = len(codecs.BOM_UTF8 + b"\r\n")  # bytes of a line that are not of its content


class Line(NamedTuple):
    """A line without its ending. `start` is its first byte's place in the file, counted from 0.

    `ended` is False for a last line that has no line ending.
    """

    number: int
    start: int
    content: str
    ended: bool


class BadLine(NamedTuple):
    """A line that is no text, and why. `content` is what can be read of it, for those who must know where it ends."""

    number: int
    row: BadRow
    content: str


def read_lines(source: Source, stream: IO[bytes]) -> Iterator[Line | BadLine]:
    """Yield the lines of a stream, with LF or CRLF endings and with or without a byte order mark.

    Holds one line in memory, whatever the size of the file. Raises FileError or OSError.
    """
    limit = source.limits.line_bytes
    number = start = 0
    while content := stream.readline(limit + _BEYOND):
        number += 1
        size = len(content)
        if number == 1:
            source.check_content(content[:8])
            content = content.removeprefix(codecs.BOM_UTF8)
        ended = content.endswith(b"\n")
        body = content.removesuffix(b"\n").removesuffix(b"\r") if ended else content
        if len(body) > limit:
            size += 0 if ended else _skip_rest_of_line(stream, limit)
            detail = f"the line has {size} bytes; the limit is {limit}"
            yield BadLine(number, bad_row("line_too_long", number, detail), "")
        else:
            yield _decode(number, start + size - len(content), body, ended)
        start += size


def _skip_rest_of_line(stream: IO[bytes], limit: int) -> int:
    skipped = 0
    while part := stream.readline(limit):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _decode(number: int, start: int, content: bytes, ended: bool) -> Line | BadLine:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        if not ended and error.reason == "unexpected end of data":
            return BadLine(number, cut_off(number), "")
        column = len(content[: error.start].decode()) + 1
        detail = f"the byte 0x{content[error.start]:02x} is not UTF-8 ({error.reason})"
        fault = bad_row("invalid_utf8", number, detail, column=column, offset=start + error.start)
        return BadLine(number, fault, content.decode(errors="replace"))
    if "\0" in text:
        position = text.index("\0")
        place = start + len(text[:position].encode())
        fault = bad_row("nul_character", number, "a NUL byte", column=position + 1, offset=place)
        return BadLine(number, fault, text)
    return Line(number, start, text, ended)


def cut_off(number: int) -> BadRow:
    """The fault of a last line that is cut off."""
    return bad_row("cut_off_file", number, "the file ends in the middle of this line")
