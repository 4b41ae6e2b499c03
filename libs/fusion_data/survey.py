"""The first pass over an upload: check every row, count, and learn what splitting needs. Nothing is written."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from fusion_core.trainer_protocol import IngestInput

from fusion_data.formats import FORMATS, Row, read_rows
from fusion_data.lines import Fault
from fusion_data.split import row_hash

MAX_ROWS = 100_000_000
MAX_REPORTED = 1000
MIN_ROWS = 2  # one to train on and one to hold out


class FileFault(msgspec.Struct, frozen=True):
    """A fault and the name of its file."""

    file: str
    line: int
    detail: str


class DatasetError(Exception):
    """The upload cannot become a dataset. `code` is one of fusion_core.problems; `faults` are the first 1000."""

    def __init__(self, code: str, message: str, faults: Sequence[FileFault] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.faults = tuple(faults)


class Survey(msgspec.Struct):
    """What the first pass counted. `text_bytes` is the UTF-8 size of all texts; the hashes are those of rows."""

    rows: int = 0
    text_bytes: int = 0
    smallest_hash: int = 2**64
    largest_hash: int = -1

    def add(self, row: Row) -> None:
        content = row.text.encode()
        digest = row_hash(content)
        self.rows += 1
        self.text_bytes += len(content)
        self.smallest_hash = min(self.smallest_hash, digest)
        self.largest_hash = max(self.largest_hash, digest)


class _Faults:
    """Every fault is counted, the first MAX_REPORTED are kept, the first one gives the code."""

    def __init__(self) -> None:
        self.count = 0
        self.first_code = ""
        self.kept: list[FileFault] = []

    def add(self, filename: str, fault: Fault) -> None:
        self.first_code = self.first_code or fault.code
        self.count += 1
        if len(self.kept) < MAX_REPORTED:
            self.kept.append(FileFault(filename, fault.line, fault.detail))

    def raise_if_any(self) -> None:
        if self.count == 0:
            return
        first = self.kept[0]
        message = f"{first.file}, line {first.line}: {first.detail}."
        if self.count > 1:
            message += f" {self.count} lines are wrong; {len(self.kept)} are listed. Mend them and upload again."
        raise DatasetError(self.first_code, message, self.kept)


def rows_of(file: IngestInput) -> Iterator[Row | Fault]:
    """The rows of one input. Raises DatasetError (unsupported_format) or OSError."""
    rows = read_rows(Path(file.path), file.filename)
    if rows is None:
        known = ", ".join(FORMATS)
        raise DatasetError(
            "unsupported_format",
            f"{file.filename}: this format cannot be read. Files may end in {known}: JSONL with a string 'text' "
            "a line, or plain UTF-8 text with a blank line between rows.",
        )
    return rows


def survey_files(inputs: Sequence[IngestInput], between_rows: Callable[[], None] = lambda: None) -> Survey:
    """Check every row of every file; `between_rows` is called after each and may raise to interrupt.

    Raises DatasetError naming every wrong line, or OSError.
    """
    readers = [(file.filename, rows_of(file)) for file in inputs]  # unknown formats first: reading may take minutes
    survey, faults = Survey(), _Faults()
    for filename, rows in readers:
        rows_before, faults_before = survey.rows, faults.count
        for row in rows:
            if isinstance(row, Fault):
                faults.add(filename, row)
            else:
                survey.add(row)
            if survey.rows > MAX_ROWS:
                raise DatasetError("invalid_row", f"More than {MAX_ROWS} rows: split the data into several datasets.")
            between_rows()
        if (survey.rows, faults.count) == (rows_before, faults_before):
            raise DatasetError("dataset_empty", f"{filename} holds no rows. Upload a file with data in it.")
    faults.raise_if_any()
    if survey.rows < MIN_ROWS:
        message = f"{survey.rows} rows are too few: upload at least {MIN_ROWS}, one to train on and one to hold out."
        raise DatasetError("dataset_empty", message)
    return survey
