"""The formats of a dataset file: each reader turns a file into rows and faults."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from fusion_data.lines import MAX_LINE_BYTES, Fault, Line, read_lines, truncated


class Row(NamedTuple):
    """One text and the number of the line where it begins."""

    line: int
    text: str


RowReader = Callable[[Path], Iterator[Row | Fault]]


class _JsonRow(msgspec.Struct):
    """A line of JSONL; other fields than `text` are allowed and not used."""

    text: str


_json_decoder = msgspec.json.Decoder(_JsonRow)


def read_jsonl(path: Path) -> Iterator[Row | Fault]:
    """Yield one row a line; lines of white space alone are not rows."""
    for line in read_lines(path):
        if isinstance(line, Fault):
            yield line
        elif line.content and not line.content.isspace():
            yield _parse_json_row(line)


def _parse_json_row(line: Line) -> Row | Fault:
    try:
        text = _json_decoder.decode(line.content).text
    except msgspec.DecodeError as error:
        return _explain(line, error)
    except RecursionError:
        return Fault(line.number, "invalid_row", 'nested too deeply; a row is an object like {"text": "..."}')
    if not text or text.isspace():
        return Fault(line.number, "invalid_row", "'text' is empty; remove the row or give it a text")
    if "\0" in text:
        return Fault(line.number, "invalid_row", f"'text' holds a NUL at character {text.index(chr(0)) + 1}; remove it")
    return Row(line.number, text)


def _explain(line: Line, error: msgspec.DecodeError) -> Fault:
    """Say what is wrong with a line; where it is not JSON, with the words and the column of the standard library."""
    content = line.content.strip()
    if not line.ended and content.startswith("{") and not content.endswith("}"):
        return truncated(line.number)
    if content.startswith("["):
        return Fault(line.number, "invalid_row", "a JSON array; write one object a line, without brackets or commas")
    if isinstance(error, msgspec.ValidationError):
        return Fault(line.number, "invalid_row", f'{error}; a row is an object like {{"text": "..."}}')
    try:
        json.loads(line.content)
    except json.JSONDecodeError as fault:
        return Fault(line.number, "invalid_row", f"not JSON: {fault.msg} at column {fault.colno}")
    except (ValueError, RecursionError) as fault:
        return Fault(line.number, "invalid_row", f"not JSON that can be read: {fault}")
    detail = (
        "not strict JSON: a lone surrogate (\\ud800 to \\udfff), NaN or Infinity; write it as valid Unicode or null"
    )
    return Fault(line.number, "invalid_row", detail)


def read_text(path: Path) -> Iterator[Row | Fault]:
    """Yield one row a paragraph block: blocks are separated by one or more lines of white space alone."""
    block: list[str] = []
    start = size = 0
    for line in read_lines(path):
        if isinstance(line, Fault):
            yield line
            continue
        if line.content and not line.content.isspace():
            start = start if block else line.number
            size += len(line.content) + 1
            if size <= MAX_LINE_BYTES:
                block.append(line.content)
            continue
        if block:
            yield _finish_block(start, size, block)
        block, size = [], 0
    if block:
        yield _finish_block(start, size, block)


def _finish_block(start: int, size: int, block: list[str]) -> Row | Fault:
    if size > MAX_LINE_BYTES:
        detail = f"this paragraph is longer than {MAX_LINE_BYTES} characters; put blank lines between its parts"
        return Fault(start, "invalid_row", detail)
    return Row(start, "\n".join(block))


FORMATS: dict[str, RowReader] = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".txt": read_text}


def read_rows(path: Path, filename: str) -> Iterator[Row | Fault] | None:
    """The rows and faults of a file, by the ending of its name; None where no reader knows the format."""
    reader = FORMATS.get(PurePosixPath(filename).suffix.lower())
    return None if reader is None else reader(path)
