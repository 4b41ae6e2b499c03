"""Files made to hurt the machine that reads them: each ends in a rule, soon and in bounded memory."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fusion_core.trainer_protocol import EventReader, IngestInput, IngestRun, Rejected, write_run
from fusion_data import DatasetError, Limits, Source, read_rows, survey_files

# The product's own command with less memory, so that the test does not need two gigabytes.
_IN_300_MB = """
import sys, msgspec, fusion_data.__main__ as command
command.LIMITS = msgspec.structs.replace(command.LIMITS, memory_bytes=300 * 2**20)
command.main()
"""


def _ingest_in_300_mb(run_dir: Path, path: Path) -> Rejected:
    write_run(run_dir, IngestRun(job_id="job", lease_epoch=1, inputs=(IngestInput(str(path), path.name),)))
    argv = [sys.executable, "-c", _IN_300_MB, "ingest", str(run_dir)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    outcome = [event for _, event in EventReader(run_dir).read()][-1]
    assert isinstance(outcome, Rejected)
    return outcome


def test_parquet_rows_that_expand_in_memory_are_refused_by_the_memory_limit(tmp_path: Path) -> None:
    """8 MB once in a dictionary page and 64 times in a batch: neither the footer nor the file's size tells."""
    path = tmp_path / "bomb.parquet"
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), ["x" * 8_000_000])
    options = {"dictionary_pagesize_limit": 2**26, "store_schema": False, "compression": "zstd"}
    pq.write_table(pa.table({"text": rows}), path, **options)
    assert path.stat().st_size < 100_000
    outcome = _ingest_in_300_mb(tmp_path, path)
    assert outcome.code == "dataset_too_large"
    assert outcome.errors[0]["rule"] == "too_much_memory"


def test_a_line_of_millions_of_values_is_checked_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "wide.jsonl"
    path.write_bytes(b'{"text": "a", "x": [' + b"[]," * 900_000 + b"NaN]}\n")
    outcome = _ingest_in_300_mb(tmp_path, path)
    assert (outcome.errors[0]["rule"], outcome.errors[0]["pointer"]) == ("invalid_json", "/x/900000")


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_past_the_deadline_reading_ends_with_what_was_found(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "slow.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 100_000)
    inputs = [IngestInput(str(path), "slow.jsonl"), IngestInput(str(path), "never read.jsonl")]
    with pytest.raises(DatasetError) as caught:
        survey_files(inputs, policy=policy, limits=Limits(seconds=0))  # type: ignore[arg-type]
    assert caught.value.code == "dataset_too_large"
    assert caught.value.report.errors_by_rule == {"too_slow": 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_a_file_without_any_row_is_watched_all_the_same(tmp_path: Path, name: str) -> None:
    """So that a deadline, a cancel or a drain ends the reading of a hundred gigabytes of blank lines."""
    path = tmp_path / name
    path.write_bytes(b"text\n" * (name == "a.csv") + b"\n" * 700_000)
    looks: list[int] = []
    assert list(read_rows(Source(path, name, watch=lambda source: looks.append(source.consumed)))) == []
    assert len(looks) >= 3
    assert looks == sorted(looks)


def test_digits_quotes_and_escapes_take_time_in_proportion(tmp_path: Path) -> None:
    """Eight megabytes of each are read within the test's time limit: nothing is quadratic."""
    for line in (
        b'{"text": "' + b"\\\\" * 4_000_000 + b'"}',
        b'{"text": "' + b"\\ud83d\\ude00" * 600_000 + b'\\ud800"}',
    ):
        path = tmp_path / "a.jsonl"
        path.write_bytes(line + b"\n")
        assert len(list(read_rows(Source(path, "a.jsonl")))) == 1
    path = tmp_path / "a.csv"
    path.write_bytes(b'text\n"' + b'""' * 4_000_000 + b'"\n')
    assert len(list(read_rows(Source(path, "a.csv")))) == 1
