"""The validation report of a dataset: what was read, what is wrong with it, and what a trainer should know of it."""

from collections.abc import Iterable

import msgspec
from fusion_core.job_spec import BadRowPolicy

from fusion_data.faults import BadRow, Fault
from fusion_data.rows import Row
from fusion_data.source import Compression

MAX_REPORTED = 1000
_MAX_UNUSED_NAMES = 100
_NAME_CHARACTERS = 64


class ReportedError(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A fault, its file and its fix: what a customer reads. The places are those of `Fault`."""

    file: str
    line: int
    column: int | None = None
    offset: int | None = None
    pointer: str | None = None
    rule: str
    detail: str
    fix: str


class FileReport(msgspec.Struct, kw_only=True):
    """`size` is that of the file as it was uploaded; `rows` are good ones, `skipped_rows` bad ones."""

    file: str
    format: str
    compression: Compression
    size: int
    rows: int = 0
    skipped_rows: int = 0


class Report(msgspec.Struct, kw_only=True):
    """report.json. Everything is counted; of the errors, the first `MAX_REPORTED` are listed.

    `lengths` counts rows by the UTF-8 size of their texts, rounded up to a power of two. `unused_fields` counts rows by
    the fields that no training uses; of a hundred names or more, the first hundred are kept.
    """

    policy: BadRowPolicy = "fail"
    rows: int = 0
    rows_by_type: dict[str, int] = {}
    skipped_rows: int = 0
    duplicate_rows: int = 0
    text_bytes: int = 0
    lengths: dict[str, int] = {}
    unused_fields: dict[str, int] = {}
    error_count: int = 0
    errors_by_rule: dict[str, int] = {}
    errors: list[ReportedError] = []
    files: list[FileReport] = []

    def add_row(self, row: Row) -> None:
        self.rows += 1
        self.files[-1].rows += 1
        self.text_bytes += row.text_bytes
        _count(self.rows_by_type, row.type)
        _count(self.lengths, str(1 << max(0, row.text_bytes - 1).bit_length()))
        for name in row.unused:
            self._add_unused(name[:_NAME_CHARACTERS])

    def _add_unused(self, name: str) -> None:
        if name in self.unused_fields or len(self.unused_fields) < _MAX_UNUSED_NAMES:
            _count(self.unused_fields, name)

    def add_bad_row(self, bad: BadRow) -> None:
        """Count a row that is left out, and all its faults."""
        self.skipped_rows += 1
        self.files[-1].skipped_rows += 1
        self._add_faults(bad)

    def add_file_fault(self, bad: BadRow) -> None:
        self._add_faults(bad)

    def _add_faults(self, bad: BadRow) -> None:
        for fault in bad.faults:
            self.error_count += 1
            _count(self.errors_by_rule, fault.rule)
            if len(self.errors) < MAX_REPORTED:
                self.errors.append(_reported(self.files[-1].file, fault))
            elif fault.meaning.scope == "file":  # it alone decides that the dataset fails, so it takes a row's place
                self.errors.pop()
                self.errors.insert(0, _reported(self.files[-1].file, fault))


def _reported(file: str, fault: Fault) -> ReportedError:
    return ReportedError(
        file=file,
        line=fault.line,
        column=fault.column,
        offset=fault.offset,
        pointer=fault.pointer,
        rule=fault.rule,
        detail=fault.detail,
        fix=fault.meaning.fix,
    )


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def sentence(error: ReportedError) -> str:
    """An error in one line: file, line, what is wrong, what to do."""
    where = f"{error.file}, line {error.line}"
    if error.column is not None:
        where += f", column {error.column}"
    if error.pointer:
        where += f", {error.pointer}"
    return f"{where}: {error.detail}. {error.fix}"


def as_mappings(errors: Iterable[ReportedError]) -> tuple[dict[str, object], ...]:
    """The errors as the trainer's protocol carries them."""
    return tuple(msgspec.to_builtins(error) for error in errors)
