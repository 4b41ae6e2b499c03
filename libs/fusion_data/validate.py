"""`python -m fusion_data validate`: the report that the service would give, before anything is uploaded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from fusion_core.job_spec import BadRowPolicy
from fusion_core.trainer_protocol import IngestInput
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fusion_data.report import Report
from fusion_data.source import Source, Watch
from fusion_data.survey import DatasetError, survey_files

OK, WRONG, NO_FILE = 0, 1, 2


def validate(files: Sequence[Path], policy: BadRowPolicy, shown_errors: int, *, as_json: bool = False) -> int:
    """Print the report, for people or as JSON, and answer the exit status."""
    out, notes = Console(soft_wrap=True, highlight=False), Console(stderr=True, highlight=False)
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        notes.print(f"no such file: {', '.join(missing)}", markup=False, soft_wrap=True)
        return NO_FILE
    failure: DatasetError | None = None
    try:
        with _bar(notes, files) as watch:
            inputs = [IngestInput(str(file), str(file)) for file in files]
            report = survey_files(inputs, watch, policy=policy).report
    except DatasetError as error:
        failure, report = error, error.report
    if as_json:
        shown = msgspec.to_builtins(report) | {"code": failure.code if failure else None}
        out.print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode(), markup=False)
        return OK if failure is None else WRONG
    _print_errors(notes, report, shown_errors)
    if failure is None:
        out.print(_summary(report), markup=False)
        return OK
    notes.print(f"not a dataset ({failure.code}): {failure}", markup=False, soft_wrap=True)
    return WRONG


@contextmanager
def _bar(notes: Console, files: Sequence[Path]) -> Iterator[Watch]:
    """A bar over the bytes of all files, on a terminal alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    total = sum(file.stat().st_size for file in files)
    with Progress(*columns, console=notes, disable=not notes.is_terminal, transient=True) as bar:
        shown = bar.add_task("checking", total=total)
        consumed: dict[Source, int] = {}

        def watch(source: Source) -> None:
            consumed[source] = source.consumed
            bar.update(shown, completed=sum(consumed.values()), description=escape(source.path.name))

        yield watch


def _print_errors(notes: Console, report: Report, limit: int) -> None:
    """A table on a terminal; elsewhere a line an error, in the form that editors and grep know."""
    if not report.error_count:
        return
    table = Table("place", "rule", "what is wrong", "what to do", box=None, pad_edge=False)
    for error in report.errors[:limit]:
        place = ":".join(str(part) for part in (error.file, error.line, error.column) if part is not None)
        pointer = f" {error.pointer}" if error.pointer else ""
        if notes.is_terminal:
            table.add_row(*map(escape, (place + pointer, error.rule, error.detail, error.fix)))
        else:
            line = f"{place}:{pointer} {error.detail} [{error.rule}]. {error.fix}"
            notes.print(line, markup=False, soft_wrap=True)
    if notes.is_terminal:
        notes.print(table)
    counts = ", ".join(f"{count:,} {rule}" for rule, count in sorted(report.errors_by_rule.items()))
    notes.print(f"{report.error_count:,} errors: {counts}", markup=False, soft_wrap=True)


def _summary(report: Report) -> str:
    types = ", ".join(f"{count:,} {kind}" for kind, count in report.rows_by_type.items())
    lines = [f"ok: {report.rows:,} rows ({types}), {report.text_bytes:,} bytes of text in {len(report.files)} files"]
    if report.skipped_rows:
        lines.append(f"skipped: {report.skipped_rows:,} rows")
    if report.duplicate_rows:
        lines.append(f"duplicates: {report.duplicate_rows:,} rows are exact repeats of others; they are kept")
    if report.unused_fields:
        names = ", ".join(f"{name} ({count:,} rows)" for name, count in sorted(report.unused_fields.items()))
        lines.append(f"not used: {names}")
    return "\n".join(lines)
