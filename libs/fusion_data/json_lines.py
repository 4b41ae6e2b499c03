"""JSONL: one object a line."""

from collections.abc import Iterator

from fusion_data.faults import BadRow, Fault
from fusion_data.json_text import JsonTextError, parse_json
from fusion_data.limits import Limits
from fusion_data.lines import BadLine, Line, cut_off, read_lines
from fusion_data.normalise import normalise
from fusion_data.rows import Row
from fusion_data.source import Source


def read_json_lines(source: Source) -> Iterator[Row | BadRow]:
    """Yield a row a line; lines of white space alone are not rows. Raises FileError or OSError."""
    with source.open() as stream:
        for line in read_lines(source, stream):
            if isinstance(line, BadLine):
                yield line.row
            elif line.content and not line.content.isspace():
                yield _read_row(line, source.limits)


def _read_row(line: Line, limits: Limits) -> Row | BadRow:
    try:
        record = parse_json(line.content, limits)
    except JsonTextError as error:
        return _explain(line, error)
    return normalise(record, line.number, limits)


def _explain(line: Line, error: JsonTextError) -> BadRow:
    """The fault at its place in the line, or that the file ends within the line."""
    content = line.content.strip()
    if error.rule == "invalid_json" and not line.ended and content.startswith("{") and not content.endswith("}"):
        return cut_off(line.number)
    column = offset = None
    if error.position is not None:
        column = error.position + 1
        offset = line.start + len(line.content[: error.position].encode())
    fault = Fault(
        rule=error.rule, line=line.number, detail=error.detail, column=column, offset=offset, pointer=error.path
    )
    return BadRow((fault,))
