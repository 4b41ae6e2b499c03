"""What the tests of the data reader share: reading bytes as a file of a name."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fusion_core.trainer_protocol import (
    EventReader,
    IngestInput,
    IngestRun,
    StopReason,
    TrainerEvent,
    write_control,
    write_run,
)
from fusion_data import LIMITS, BadRow, Fault, Limits, Row, Source, read_rows
from fusion_data.ingest import ingest

Read = Callable[..., list[Row | BadRow]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(content: bytes, filename: str = "data.jsonl", limits: Limits = LIMITS) -> list[Row | BadRow]:
        path = tmp_path / "object"
        path.write_bytes(content)
        return list(read_rows(Source(path, filename, limits, tmp_path)))

    return read


@pytest.fixture
def fault(read: Read) -> Callable[..., Fault]:
    """The only fault of a file."""

    def fault(content: bytes, filename: str = "data.jsonl", limits: Limits = LIMITS) -> Fault:
        (bad,) = [row for row in read(content, filename, limits) if isinstance(row, BadRow)]
        (found,) = bad.faults
        return found

    return fault


def parquet(columns: dict[str, Any], schema: pa.Schema | None = None, **options: Any) -> bytes:
    """The bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer, **options)
    return buffer.getvalue()


@pytest.fixture(name="parquet", scope="session")
def _parquet() -> Callable[..., bytes]:
    return parquet


@pytest.fixture
def ingested(tmp_path: Path) -> Callable[..., list[TrainerEvent]]:
    """Run an ingest in this process over files of the given contents; answers all events."""
    attempts = itertools.count()

    def run(files: dict[str, bytes], *, control: StopReason | None = None, **options: Any) -> list[TrainerEvent]:
        run_dir = tmp_path / f"run-{next(attempts)}"
        run_dir.mkdir()
        inputs = []
        for number, (name, content) in enumerate(files.items()):
            path = run_dir / f"input-{number}"
            path.write_bytes(content)
            inputs.append(IngestInput(str(path), name))
        write_run(run_dir, IngestRun(job_id="job", lease_epoch=1, inputs=tuple(inputs), **options))
        if control is not None:
            write_control(run_dir, control)
        ingest(run_dir)
        return [event for _, event in EventReader(run_dir).read()]

    return run
