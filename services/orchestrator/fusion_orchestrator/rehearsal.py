"""Checking a rehearsal set: JSON lines of the base model's own training text, replayed while the grown model trains."""

from pathlib import Path

import msgspec

MAX_LINE_BYTES = 16 * 1024 * 1024
_MAX_FAULTS = 20


class RehearsalError(ValueError):
    """The file is not a rehearsal set; the message names each bad line and its reason."""


class _Row(msgspec.Struct):
    text: str


def check_rehearsal(path: Path) -> int:
    """Count the rows of a file in which every line is {"text": ...} with some text in it.

    Raises RehearsalError, or OSError when the file cannot be read.
    """
    faults: list[str] = []
    rows = 0
    with path.open("rb") as file:
        while len(faults) < _MAX_FAULTS and (line := file.readline(MAX_LINE_BYTES + 1)):
            rows += 1
            if reason := _fault(line):
                faults.append(f"line {rows}: {reason}")
            if len(line) > MAX_LINE_BYTES:
                break  # what follows is the rest of the same line
    if rows == 0:
        faults.append("the file is empty")
    if faults:
        raise RehearsalError(f'{path.name} must hold one {{"text": ...}} a line:\n' + "\n".join(faults))
    return rows


def _fault(line: bytes) -> str | None:
    if len(line) > MAX_LINE_BYTES:
        return f"is longer than {MAX_LINE_BYTES} bytes; split the text"
    try:
        row = msgspec.json.decode(line, type=_Row)
    except UnicodeDecodeError as error:
        return f"is not UTF-8: {error.reason}"
    except (msgspec.DecodeError, RecursionError) as error:
        return str(error)
    return None if row.text.strip() else "has an empty text"
