"""What every command of `fusion` shares: a session, results on stdout, everything else on stderr."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from fusion_client.client import Fusion
from fusion_client.errors import ApiError, DatasetFailedError, FusionError

out = Console()
notes = Console(stderr=True)
_FILE_WIDTH = 10_000


@contextmanager
def session() -> Iterator[Fusion]:
    """A client whose errors end the command with a message and status 1."""
    try:
        with Fusion.from_environment() as client:
            yield client
    except (FusionError, OSError) as error:
        notes.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        for line in _error_lines(error):
            notes.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _error_lines(error: Exception) -> list[str]:
    if isinstance(error, ApiError):
        lines = [f"{entry.get('pointer', '')}: {entry.get('detail', '')}" for entry in error.errors]
        return lines + ([f"request id {error.request_id}"] if error.request_id else [])
    if isinstance(error, DatasetFailedError):
        return [fault_line(entry) for entry in error.errors]
    return []


def fault_line(entry: Mapping[str, Any]) -> str:
    """A fault of a dataset in one line, in the form that editors and grep know."""
    place = ":".join(str(entry[part]) for part in ("file", "line", "column") if entry.get(part) is not None)
    pointer = f" {entry['pointer']}" if entry.get("pointer") else ""
    return f"{place}:{pointer} {entry.get('detail', '')}. {entry.get('fix', '')}".rstrip()


def table(*names: str, rows: list[list[str]]) -> None:
    """Print rows below their names. No value is cut: a narrow terminal folds it, a file gets it on one line."""
    shown = Table(box=None, pad_edge=False)
    for name in names:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console = out if out.is_terminal else Console(file=out.file, width=_FILE_WIDTH)
    console.print(shown)


def time_text(moment: datetime | None) -> str:
    """In UTC; empty for None."""
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%SZ")
