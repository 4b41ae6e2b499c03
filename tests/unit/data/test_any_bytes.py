"""Whatever bytes come, reading ends in rows or in a report of known rules, and never in another exception."""

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fusion_core.trainer_protocol import IngestInput
from fusion_data import RULES, BadRow, DatasetError, Limits, Report, Row, Source, read_rows, survey_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SMALL = Limits(
    line_bytes=2000, expansion_from_bytes=100_000, expansion=20, nesting=8, rows=500, zstd_window_bytes=2**20
)
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": None}]
ROWS = [
    {"text": "zwölf \u2028 😀", "id": 1},
    {"prompt": "p", "completion": "c"},
    {"messages": MESSAGES, "tools": [{"name": "f", "parameters": {"x": [1, 2.5, None]}}]},
    {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": [MESSAGES[1] | {"content": "no"}]},
]


def _parquet(**options: str) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"text": ["one", "two", None] * 9, "n": range(27), "messages": [None, None, MESSAGES] * 9})
    pq.write_table(table, buffer, row_group_size=7, **options)
    return buffer.getvalue()


_JSONL = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
_CSV = b'id,prompt,completion\r\n1,p,c\r\n2,"p, ""q""\nr",\xc3\xb6\r\n3,,x\r\n'
_TEXT = "one\nmore\n\ntwo \u2028\n\n\n drei\n".encode()
WHOLE: dict[str, bytes] = {
    "a.jsonl": _JSONL,
    "a.csv": _CSV,
    "b.csv": b'messages\n"[{""role"": ""assistant"", ""content"": ""a""}]"\n',
    "a.txt": _TEXT,
    "a.parquet": _parquet(),
    "b.parquet": _parquet(compression="zstd"),
    "a.jsonl.gz": gzip.compress(_JSONL),
    "a.csv.zst": zstandard.compress(_CSV),
    "a.txt.gz": gzip.compress(_TEXT) * 2,
    "a.parquet.gz": gzip.compress(_parquet()),
}
_PIECES = st.sampled_from(
    [
        *(b'"', b"\n", b"\r\n", b"\n\n", b",", b"{", b"[" * 20, b"]" * 20, b"\x00", b"\xff", b"\xef\xbb\xbf"),
        *(b"\\u0000", b"\\ud800", b"1e999", b"NaN", b"null", b'"role"', b'"tool_calls": [{}]', b'{"text": 1}\n'),
        *(b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"),
    ]
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some of its bytes changed, replaced by pieces that mean something, repeated or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, len(content)))
        size = draw(st.integers(0, 12))
        content[place : place + size] = draw(st.one_of(_PIECES, st.binary(max_size=12)))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content) * draw(st.integers(1, 3))


def surveyed(path: Path, filename: str) -> Report:
    try:
        return survey_files([IngestInput(str(path), filename)], policy="skip", limits=SMALL).report
    except DatasetError as error:
        return error.report


def check(content: bytes, filename: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object"
        path.write_bytes(content)
        read = list(read_rows(Source(path, filename, SMALL, Path(folder))))
        faults = [fault for row in read if isinstance(row, BadRow) for fault in row.faults]
        assert all(fault.rule in RULES and fault.line >= 1 and fault.detail for fault in faults)
        assert all(isinstance(json.loads(row.encoded), dict) for row in read if isinstance(row, Row))
        assert not any(row.is_fatal for row in read[:-1] if isinstance(row, BadRow)), "a fatal one is the last"
        report = surveyed(path, filename)
        if "too_many_rows" not in report.errors_by_rule:
            assert report.rows == len(read) - sum(isinstance(row, BadRow) for row in read)
            assert report.error_count == len(faults) + report.errors_by_rule.get("empty_file", 0)
        assert [path.name for path in Path(folder).iterdir()] == ["object"], "scratch files are gone"


@pytest.mark.parametrize("filename", WHOLE)
def test_the_whole_files_are_good(filename: str, read: Callable[..., list[Row | BadRow]]) -> None:
    assert sum(isinstance(row, Row) for row in read(WHOLE[filename], filename)) >= 1


@pytest.mark.parametrize("filename", WHOLE)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_ends_in_a_report_or_rows(filename: str, data: st.DataObject) -> None:
    check(data.draw(damaged(WHOLE[filename])), filename)


@pytest.mark.parametrize("filename", [*WHOLE, "a.jsonl.zst", "a", "a.gz"])
@settings(max_examples=12, deadline=None)
@given(content=st.binary(max_size=400))
def test_any_bytes_end_in_a_report_or_rows(filename: str, content: bytes) -> None:
    check(content, filename)


_KEYS = st.text(max_size=3) | st.sampled_from(
    [
        *("text", "prompt", "completion", "messages", "chosen", "rejected", "tools"),
        *("role", "content", "tool_calls", "tool_call_id", "function", "name", "arguments", "type", "id"),
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.dictionaries(_KEYS, _JSON, max_size=4), min_size=1, max_size=5))
def test_any_json_ends_in_a_report_or_rows(rows: list[object]) -> None:
    check(b"".join(json.dumps(row).encode() + b"\n" for row in rows), "a.jsonl")
