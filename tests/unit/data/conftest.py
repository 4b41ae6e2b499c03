"""What the tests of the data reader share: reading bytes as a file of a name."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fusion_data import LIMITS, BadRow, Fault, Limits, Row, Source, read_rows

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
