"""What is wrong with a dataset, and where."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from fusion_data.rules import RULES, Rule

_POINTER_CHARACTERS = 200  # a key may be megabytes long, and a thousand faults are kept


class Fault(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One broken rule and its place. `rule` is the name of a rule of fusion_data.rules.

    `line` counts from 1: a line of JSONL, text or CSV, a row of Parquet. `column` counts characters from 1 (fields, in
    a record of CSV). `offset` counts bytes from 0 in the decompressed file. `pointer` (RFC 6901) leads into the row.
    """

    rule: str
    line: int
    detail: str
    column: int | None = None
    offset: int | None = None
    pointer: str | None = None

    @property
    def meaning(self) -> Rule:
        return RULES[self.rule]


class BadRow(NamedTuple):
    """A row that breaks rules; `faults` has at least one."""

    faults: tuple[Fault, ...]

    @property
    def is_fatal(self) -> bool:
        """Whether it breaks a rule of the whole file, after which nothing more is read and nothing can be skipped."""
        return any(fault.meaning.scope == "file" for fault in self.faults)


class FileError(Exception):
    """A file that cannot be read on: its reader turns this into a BadRow at the line it has come to."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule
        self.detail = detail


def bad_row(rule: str, line: int, detail: str, *, column: int | None = None, offset: int | None = None) -> BadRow:
    """A row with a single fault."""
    return BadRow((Fault(rule=rule, line=line, detail=detail, column=column, offset=offset),))


def pointer(parts: Iterable[str | int]) -> str:
    """The JSON pointer of a path (RFC 6901); `""` is the whole row. One that is absurdly long is cut off."""
    whole = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in parts)
    return whole if len(whole) <= _POINTER_CHARACTERS else f"{whole[:_POINTER_CHARACTERS]}..."
