"""The first pass over an upload: check every row, count, and learn what splitting needs. Nothing is written."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from fusion_core.heldout import row_hash
from fusion_core.job_spec import BadRowPolicy
from fusion_core.trainer_protocol import IngestInput

from fusion_data.duplicates import DuplicateCounter
from fusion_data.faults import BadRow, FileError, bad_row
from fusion_data.formats import FORMATS, read_rows
from fusion_data.limits import LIMITS, Limits
from fusion_data.report import FileReport, Report, sentence
from fusion_data.rows import Row
from fusion_data.rules import RULES
from fusion_data.source import Source, Watch

MIN_ROWS = 2  # one to train on and one to hold out


class DatasetError(Exception):
    """The upload cannot become a dataset. `code` is one of fusion_core.problems; `report` has every count and place."""

    def __init__(self, code: str, message: str, report: Report) -> None:
        super().__init__(message)
        self.code = code
        self.report = report


class Survey(msgspec.Struct):
    """What the first pass found: the report, and the hashes between which the split decides."""

    report: Report
    smallest_hash: int = 2**64
    largest_hash: int = -1


def _within(seconds: float, watch: Watch) -> Watch:
    """`watch` with a deadline, which begins now; past it the file that is being read is at fault."""
    end = time.monotonic() + seconds

    def look(source: Source) -> None:
        if time.monotonic() > end:
            raise FileError("too_slow", f"reading is not done after {seconds:g} seconds")
        watch(source)

    return look


def survey_files(
    inputs: Sequence[IngestInput],
    watch: Watch = lambda _: None,
    *,
    policy: BadRowPolicy = "fail",
    limits: Limits = LIMITS,
    scratch: Path | None = None,
) -> Survey:
    """Check every row of every file; `watch` is called all the while and may raise to interrupt.

    Raises DatasetError with a report of every fault, or OSError.
    """
    survey = Survey(Report(policy=policy))
    look = _within(limits.seconds, watch)
    sources = [Source(Path(file.path), file.filename, limits, scratch, look) for file in inputs]
    _check_names(sources, survey.report)  # first: reading may take minutes
    with DuplicateCounter(scratch) as duplicates:
        for source in sources:
            if _survey_file(source, survey, duplicates):
                break
        survey.report.duplicate_rows = duplicates.count()
    _raise_if_wrong(survey.report)
    return survey


def _check_names(sources: Sequence[Source], report: Report) -> None:
    for source in sources:
        if source.ending not in FORMATS:
            _start_file(source, report)
            for fault in read_rows(source):
                assert isinstance(fault, BadRow)
                report.add_file_fault(fault)
    _raise_if_wrong(report, is_complete=False)


def _start_file(source: Source, report: Report) -> None:
    entry = FileReport(
        file=source.filename, format=source.ending.lstrip("."), compression=source.compression, size=source.size
    )
    report.files.append(entry)


def _survey_file(source: Source, survey: Survey, duplicates: DuplicateCounter) -> bool:
    """Read one file into the report; answers whether reading on is of no use."""
    report = survey.report
    _start_file(source, report)
    rows = bad = 0
    for row in read_rows(source):
        if isinstance(row, Row):
            rows += 1
            digest = row_hash(row.content)
            report.add_row(row)
            duplicates.add(digest)
            survey.smallest_hash = min(survey.smallest_hash, digest)
            survey.largest_hash = max(survey.largest_hash, digest)
        elif row.is_fatal:
            bad += 1
            report.add_file_fault(row)
            if row.faults[0].rule == "too_slow":
                return True
        else:
            bad += 1
            report.add_bad_row(row)
        if report.rows + report.skipped_rows > source.limits.rows:
            line = row.line if isinstance(row, Row) else row.faults[0].line
            report.add_file_fault(bad_row("too_many_rows", line, f"more than {source.limits.rows} rows"))
            return True
    if rows == bad == 0:
        report.add_file_fault(bad_row("empty_file", 1, f"{source.filename} holds no rows"))
    return False


def _raise_if_wrong(report: Report, *, is_complete: bool = True) -> None:
    """Raises DatasetError by the policy: any fault, or with `skip` only faults of whole files; or too few rows."""
    deciding = [error for error in report.errors if report.policy == "fail" or RULES[error.rule].scope == "file"]
    if deciding:
        message = sentence(deciding[0])
        if report.error_count > 1:
            message += f" {report.error_count} errors were found; the report lists {len(report.errors)}."
        raise DatasetError(RULES[deciding[0].rule].code, message, report)
    if is_complete and report.rows < MIN_ROWS:
        skipped = f" ({report.skipped_rows} were skipped)" if report.skipped_rows else ""
        message = f"{report.rows} rows{skipped} are too few: upload at least {MIN_ROWS}, one to train on and one to"
        raise DatasetError("dataset_empty", f"{message} hold out.", report)
