"""Parquet: read row group by row group and page by page; only the columns that rows use."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusion_data.faults import BadRow, Fault, FileError, bad_row
from fusion_data.json_text import JsonTextError, parse_json
from fusion_data.limits import MIB, Limits
from fusion_data.normalise import JSON_FIELDS, KNOWN_FIELDS, check_columns, normalise
from fusion_data.rows import Row
from fusion_data.source import PARQUET, Source

_BATCH_ROWS = 64  # what is in memory at a time is this many rows, of a limited size each
_BUFFER_BYTES = MIB
_THRIFT_BYTES = 64 * MIB
_COPY_BYTES = MIB
_ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last of a footer's names


def read_parquet(source: Source) -> Iterator[Row | BadRow]:
    """Yield a row a row; lines are rows counted from 1. Raises FileError or OSError."""
    with _seekable(source) as file:
        parquet = _open(file, source.limits)
        columns = _columns(parquet.schema_arrow)
        unused = frozenset(parquet.schema_arrow.names) - set(columns)
        line, total = 0, parquet.metadata.num_rows
        for batch in _batches(parquet, columns):
            source.watch(source)
            arrays = {name: batch.column(batch.schema.get_field_index(name)) for name in columns}
            for number in range(batch.num_rows):
                line += 1
                yield _read_row({name: array[number] for name, array in arrays.items()}, line, unused, source.limits)
            source.consumed = source.size * line // max(1, total)


@contextmanager
def _seekable(source: Source) -> Iterator[IO[bytes]]:
    """Parquet is read from its end, so a compressed file is decompressed beside it first."""
    if source.compression == "none":
        with source.open(), source.path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(dir=source.scratch) as file:
        with source.open() as stream:
            while chunk := stream.read(_COPY_BYTES):
                file.write(chunk)
        yield file


def _open(file: IO[bytes], limits: Limits) -> pq.ParquetFile:
    """The file, with what its footer says within the limits. Raises FileError."""
    _check_marks(file)
    try:
        parquet = pq.ParquetFile(
            file,
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            thrift_string_size_limit=_THRIFT_BYTES,
            thrift_container_size_limit=_THRIFT_BYTES,
        )
    except _ARROW_ERRORS as error:
        raise _damaged(error) from None
    metadata = parquet.metadata
    if metadata.num_columns > limits.columns:
        raise FileError("too_many_columns", f"{metadata.num_columns} columns; the limit is {limits.columns}")
    # The figures of columns are not asked for: Arrow ends the process where those of a damaged footer disagree.
    sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    for number, size in enumerate(sizes):
        if size > limits.row_group_bytes:
            detail = f"row group {number} has {size} bytes; the limit is {limits.row_group_bytes}"
            raise FileError("row_group_too_large", detail)
    packed, whole = file.seek(0, 2), sum(sizes)
    if whole > max(limits.expansion_from_bytes, limits.expansion * packed):
        raise FileError("expands_too_far", f"{whole // packed} times its size; the limit is {limits.expansion} times")
    return parquet


def _check_marks(file: IO[bytes]) -> None:
    file.seek(0)
    if file.read(4) != PARQUET:
        raise FileError("format_mismatch", "the content is not Parquet, and the name ends in .parquet")
    size = file.seek(0, 2)
    file.seek(max(4, size - 4))
    if file.read(4) != PARQUET:
        raise FileError("cut_off_file", "the Parquet file has no footer")
    file.seek(0)


def _damaged(error: Exception) -> Exception:
    """What Arrow says as a fault of the file; memory, and errors of the disk, which have a number, stay as they are."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return error
    return FileError("damaged_file", f"Parquet cannot be read: {str(error).splitlines()[0][:200]}")


def _columns(schema: pa.Schema) -> list[str]:
    """The columns to read. Raises FileError."""
    try:
        names = schema.names
    except UnicodeDecodeError as error:
        raise _damaged(error) from None
    check_columns(names)
    columns = [name for name in names if name in KNOWN_FIELDS]
    for name in columns:
        if columns.count(name) > 1:
            raise FileError("column_type", f"the column '{name}' stands twice")
        found = schema.field(name).type
        if not _fits(name, found):
            raise FileError("column_type", f"the column '{name}' has the type {str(found)[:80]}")
    return columns


def _fits(name: str, found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found):
        return True
    nested = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    return pa.types.is_null(found) or (nested and name not in ("text", "completion"))


def _batches(parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns), use_threads=False)
    except _ARROW_ERRORS as error:
        raise _damaged(error) from None


def _read_row(cells: dict[str, Any], line: int, unused: frozenset[str], limits: Limits) -> Row | BadRow:
    record: dict[str, Any] = {}
    for name, cell in cells.items():
        try:
            value = cell.as_py()
            if isinstance(value, str) and name in JSON_FIELDS:
                value = parse_json(value, limits)
            record[name] = without_nulls(value)
        except UnicodeDecodeError as error:
            detail = f"the byte 0x{error.object[error.start]:02x} is not UTF-8 ({error.reason})"
            return BadRow((Fault(rule="invalid_utf8", line=line, pointer=f"/{name}", detail=detail),))
        except JsonTextError as error:
            place = f"/{name}{error.path or ''}"
            return BadRow((Fault(rule=error.rule, line=line, pointer=place, detail=error.detail),))
        except (pa.ArrowException, ValueError) as error:  # two fields of a struct with one name, for example
            return bad_row("wrong_type", line, f"the column '{name}' cannot be read: {str(error)[:200]}")
    row = normalise(record, line, limits)
    if isinstance(row, Row):
        if len(row.encoded) > limits.line_bytes:
            detail = f"the row has {len(row.encoded)} bytes; the limit is {limits.line_bytes}"
            return bad_row("line_too_long", line, detail)
        row = row._replace(unused=row.unused | unused)
    return row


def without_nulls(value: Any) -> Any:
    """A value without the nulls that Arrow puts where a struct of other rows has a field."""
    if isinstance(value, dict):
        return {name: without_nulls(child) for name, child in value.items() if child is not None}
    if isinstance(value, list):
        return [without_nulls(child) for child in value]
    return value
