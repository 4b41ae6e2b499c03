"""CSV (RFC 4180): a header, then a record a row; fields in quotes may span lines."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from fusion_data.faults import BadRow, Fault, FileError, bad_row
from fusion_data.json_text import JsonTextError, parse_json
from fusion_data.limits import Limits
from fusion_data.lines import BadLine, Line, read_lines
from fusion_data.normalise import JSON_FIELDS, check_columns, normalise
from fusion_data.rows import Row
from fusion_data.source import Source

_OTHER_SEPARATORS = ";\t|"


class _Feed:
    """The lines that the csv module asks for, and what is known of the record that they belong to."""

    def __init__(self, lines: Iterator[Line | BadLine], limits: Limits) -> None:
        self._lines = lines
        self._limit = limits.line_bytes
        self.begin()
        self.line = 0
        self.ended = True

    def begin(self) -> None:
        """A new record starts with the next line."""
        self.first_line = 0
        self.faults: list[Fault] = []
        self._bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.line = line.number
        self.first_line = self.first_line or line.number
        if isinstance(line, BadLine):
            self.faults += line.row.faults
        else:
            self.ended = line.ended
        self._bytes += len(line.content) + 1
        if self._bytes > self._limit + 1:
            detail = f"the record that begins in line {self.first_line} has more than {self._limit} characters"
            raise FileError("open_quote", detail)
        return f"{line.content}\n"


def read_csv(source: Source) -> Iterator[Row | BadRow]:
    """Yield a row a record; blank lines are not rows. Raises FileError or OSError."""
    csv.field_size_limit(source.limits.line_bytes + 1)  # of the whole process; the feed keeps to the limit itself
    with source.open() as stream:
        feed = _Feed(read_lines(source, stream), source.limits)
        reader = csv.reader(feed, strict=True)
        records = _records(reader, feed)
        header = _read_header(next(records, None), source.limits)
        for fields in records:
            if isinstance(fields, BadRow):
                yield fields
            else:
                yield _read_row(header, fields, feed, source.limits)


def _records(reader: Iterator[list[str]], feed: _Feed) -> Iterator[list[str] | BadRow]:
    """Records and bad records, without blank lines; `feed` knows where the last one stands."""
    while True:
        feed.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _explain(error, feed)
            continue
        if feed.faults:
            yield BadRow(tuple(feed.faults))
        elif fields:
            yield fields


def _explain(error: csv.Error, feed: _Feed) -> BadRow:
    if feed.faults:
        return BadRow(tuple(feed.faults))
    if "unexpected end of data" in str(error):
        return bad_row("cut_off_file", feed.first_line, "the file ends within a quoted field of this record")
    return bad_row("csv_syntax", feed.first_line, f"not CSV: {error}")


def _read_header(header: list[str] | BadRow | None, limits: Limits) -> list[str]:
    """The names of the columns; [] of an empty file. Raises FileError."""
    if header is None:
        return []
    if isinstance(header, BadRow):
        raise FileError("bad_header", f"the first line cannot be read: {header.faults[0].detail}")
    names = [name.strip() for name in header]
    if len(names) > limits.columns:
        raise FileError("too_many_columns", f"{len(names)} columns; the limit is {limits.columns}")
    other = next((sign for sign in _OTHER_SEPARATORS if sign in header[0]), None)
    if len(names) == 1 and other is not None:
        raise FileError("bad_header", f"the columns are separated by {other!r}, not by commas")
    wrong = next((name for number, name in enumerate(names) if not name or name in names[:number]), None)
    if wrong is not None:
        raise FileError("bad_header", f"the column {wrong[:40]!r} stands twice" if wrong else "a column has no name")
    check_columns(names)
    return names


def _read_row(header: Sequence[str], fields: Sequence[str], feed: _Feed, limits: Limits) -> Row | BadRow:
    line = feed.first_line
    if len(fields) != len(header):
        if not feed.ended and len(fields) < len(header):
            return bad_row("cut_off_file", line, "the file ends in the middle of this record")
        return bad_row("csv_columns", line, f"{len(fields)} fields; the header has {len(header)}")
    record: dict[str, Any] = dict(zip(header, fields, strict=True))
    for number, name in enumerate(header):
        if not record[name]:
            record[name] = None  # CSV has no null: an empty field is a missing value
        elif name in JSON_FIELDS:
            try:
                record[name] = parse_json(record[name], limits)
            except JsonTextError as error:
                place = f"/{name}{error.path or ''}"
                fault = Fault(rule=error.rule, line=line, column=number + 1, pointer=place, detail=error.detail)
                return BadRow((fault,))
    row = normalise(record, line, limits)
    return row if isinstance(row, Row) else BadRow(tuple(_with_column(fault, header) for fault in row.faults))


def _with_column(fault: Fault, header: Sequence[str]) -> Fault:
    """The fault with the number of its field, which its pointer starts with."""
    name = (fault.pointer or "").split("/")[1:2]
    return msgspec.structs.replace(fault, column=header.index(name[0]) + 1) if name and name[0] in header else fault
