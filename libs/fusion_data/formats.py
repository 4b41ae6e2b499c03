"""The formats of a dataset file: which reader turns which file into rows and faults."""

from collections.abc import Callable, Iterator

from fusion_data.csv_rows import read_csv
from fusion_data.faults import BadRow, FileError, bad_row
from fusion_data.json_lines import read_json_lines
from fusion_data.plain_text import read_plain_text
from fusion_data.rows import Row
from fusion_data.source import Source

RowReader = Callable[[Source], Iterator[Row | BadRow]]


def _read_parquet(source: Source) -> Iterator[Row | BadRow]:
    from fusion_data.parquet_rows import read_parquet  # Arrow takes 60 MB that other formats do without

    return read_parquet(source)


FORMATS: dict[str, RowReader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".txt": read_plain_text,
    ".csv": read_csv,
    ".parquet": _read_parquet,
}


def read_rows(source: Source) -> Iterator[Row | BadRow]:
    """The rows and bad rows of a file, by the ending of its name. A fatal BadRow is the last. Raises OSError."""
    reader = FORMATS.get(source.ending)
    if reader is None:
        ending = repr(source.ending) if source.ending else "nothing"
        yield bad_row("unknown_format", 1, f"the name ends in {ending}; known are {', '.join(FORMATS)}")
        return
    line = 1
    try:
        for row in reader(source):
            yield row
            if isinstance(row, Row):
                line = row.line
            elif row.is_fatal:
                return
            else:
                line = row.faults[-1].line
    except FileError as error:
        yield bad_row(error.rule, line, error.detail)
    except MemoryError:
        yield bad_row("too_much_memory", line, "reading on takes more memory than there is for one dataset")
