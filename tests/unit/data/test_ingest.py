"""`python -m fusion_data ingest RUN_DIR` as the daemon sees it: a real process, a run directory, its events."""

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from fusion_core.trainer_protocol import (
    EventReader,
    Finished,
    IngestInput,
    IngestRun,
    Rejected,
    ShardSaved,
    Stopped,
    TrainerEvent,
    write_run,
)
from fusion_data.ingest import ingest


def _rows(count: int) -> bytes:
    return b"".join(json.dumps({"text": f"row number {n}"}).encode() + b"\n" for n in range(count))


def _write(run_dir: Path, files: dict[str, bytes]) -> None:
    (run_dir / "input").write_bytes(next(iter(files.values())))
    inputs = (IngestInput(str(run_dir / "input"), next(iter(files))),)
    write_run(run_dir, IngestRun(job_id="job", lease_epoch=1, inputs=inputs))


def _shards(events: list[TrainerEvent]) -> list[ShardSaved]:
    return [event for event in events if isinstance(event, ShardSaved)]


def _texts(events: list[TrainerEvent], split: str) -> list[str]:
    paths = [Path(shard.path) for shard in _shards(events) if shard.split == split]
    return [json.loads(line)["text"] for path in paths for line in path.read_bytes().splitlines()]


def test_every_row_lands_in_one_shard_and_the_counts_agree(ingested):
    events = ingested({"a.jsonl": _rows(500), "b.txt": b"one\n\ntwo\n"}, heldout_percent=10, shard_bytes=2000)
    finished = events[-1]
    assert isinstance(finished, Finished)
    train, heldout = _texts(events, "train"), _texts(events, "heldout")
    assert sorted(train + heldout) == sorted([f"row number {n}" for n in range(500)] + ["one", "two"])
    assert 20 < len(heldout) < 90
    assert finished.result["rows"] == 502
    assert finished.result["heldout_rows"] == len(heldout)
    assert finished.result["bytes"] == sum(len(text) for text in train + heldout)
    assert finished.result["shards"] == len(_shards(events))


def test_shards_are_bounded_and_their_entries_match_the_files(ingested):
    shards = _shards(ingested({"a.jsonl": _rows(500)}, shard_bytes=2000))
    assert len(shards) > 5
    for shard in shards:
        content = Path(shard.path).read_bytes()
        assert len(content) == shard.file.size <= 2000
        assert hashlib.sha256(content).hexdigest() == shard.file.sha256
        assert content.count(b"\n") == shard.rows
    assert [s.file.rel for s in shards if s.split == "train"][:2] == ["train-00000.jsonl", "train-00001.jsonl"]


def test_equal_input_gives_equal_shards_and_a_row_keeps_its_side_in_another_upload(ingested):
    first, second = ingested({"a.jsonl": _rows(300)}), ingested({"a.jsonl": _rows(300)})
    assert [s.file for s in _shards(first)] == [s.file for s in _shards(second)]
    grown = ingested({"a.jsonl": _rows(600)})
    assert set(_texts(first, "heldout")) <= set(_texts(grown, "heldout"))


@pytest.mark.parametrize("percent", [0, 2, 100])
@pytest.mark.parametrize("content", [_rows(2), _rows(3), b'{"text": "same"}\n' * 3])
def test_neither_side_is_ever_empty(ingested, content, percent):
    events = ingested({"a.jsonl": content}, heldout_percent=percent)
    assert _texts(events, "train")
    assert _texts(events, "heldout")


def test_every_bad_line_is_named_and_nothing_is_written(ingested, tmp_path):
    events = ingested({"good.jsonl": _rows(5), "bad.jsonl": _rows(2) + b"oops\n" + _rows(1) + b'{"text": 1}\n'})
    outcome = events[-1]
    assert isinstance(outcome, Rejected)
    assert outcome.code == "invalid_row"
    assert outcome.message.startswith("bad.jsonl, line 3, column 1: not JSON")
    assert [(error["file"], error["line"]) for error in outcome.errors] == [("bad.jsonl", 3), ("bad.jsonl", 5)]
    assert not list(tmp_path.glob("run-*/shards/*"))
    (report,) = [json.loads(path.read_bytes()) for path in tmp_path.glob("run-*/report.json")]
    assert report["errors"] == list(outcome.errors)
    assert (report["rows"], report["skipped_rows"]) == (8, 2)
    assert report["errors_by_rule"] == {"invalid_json": 1, "wrong_type": 1}


def test_with_skip_bad_rows_are_left_out_and_counted(ingested, tmp_path):
    content = _rows(20) + b"oops\n" + _rows(1) + b'{"text": 1}\n'
    events = ingested({"a.jsonl": content}, policy="skip")
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert sorted(_texts(events, "train") + _texts(events, "heldout")) == sorted(
        [f"row number {n}" for n in range(20)] + ["row number 0"]
    )
    (report,) = [json.loads(path.read_bytes()) for path in tmp_path.glob("run-*/report.json")]
    assert (finished.result["rows"], report["rows"], report["skipped_rows"]) == (21, 21, 2)
    assert [error["line"] for error in report["errors"]] == [21, 23]
    assert report["duplicate_rows"] == 1


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"a.jsonl": b"oops\n" * 1500 + _rows(3), "b.jsonl": _rows(3)[:-5]}, "upload_truncated"),
        ({"a.jsonl": b"oops\n" * 3 + _rows(1)}, "dataset_empty"),
        ({"a.jsonl": _rows(3), "b.csv": b"x,y\n1,2\n"}, "invalid_row"),
    ],
)
def test_what_concerns_a_whole_file_is_never_skipped(ingested, files, code):
    outcome = ingested(files, policy="skip")[-1]
    assert isinstance(outcome, Rejected)
    assert outcome.code == code
    assert len(outcome.errors) <= 20


def test_the_report_lists_the_first_thousand_faults_and_counts_all(ingested, tmp_path):
    outcome = ingested({"a.jsonl": b"oops\n" * 1500})[-1]
    assert isinstance(outcome, Rejected)
    assert len(outcome.errors) == 20, "a glance"
    assert "1500 errors were found; the report lists 1000" in outcome.message
    (report,) = [json.loads(path.read_bytes()) for path in tmp_path.glob("run-*/report.json")]
    assert (len(report["errors"]), report["error_count"]) == (1000, 1500)


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({"a.jsonl": _rows(3), "b.json": b"{}"}, "unsupported_format", ".jsonl, .ndjson, .txt, .csv, .parquet"),
        ({"a.jsonl": b""}, "dataset_empty", "a.jsonl holds no rows"),
        ({"a.jsonl": _rows(3), "b.txt": b"\n \n"}, "dataset_empty", "b.txt holds no rows"),
        ({"a.jsonl": _rows(1)}, "dataset_empty", "at least 2"),
        ({"a.jsonl": _rows(3)[:-5]}, "upload_truncated", "a.jsonl, line 3"),
        ({"a.jsonl": b'{"text": "\xff"}\n'}, "invalid_encoding", "Save the file as UTF-8"),
    ],
)
def test_rejections_say_what_to_do(ingested, files, code, words):
    outcome = ingested(files)[-1]
    assert isinstance(outcome, Rejected)
    assert outcome.code == code
    assert words in outcome.message


@pytest.mark.parametrize("reason", ["drain", "cancel", "stop"])
def test_control_is_obeyed(ingested, reason):
    assert ingested({"a.jsonl": _rows(3)}, control=reason) == [Stopped(step=0, reason=reason)]


def _command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fusion_data", *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_full_disk_is_a_crash_that_names_itself(run_dir):
    _write(run_dir, {"a.jsonl": _rows(3)})
    done = _command("ingest", run_dir, FUSION_FAILPOINT="shard=enospc")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("fusion_data: disk_full:")
    assert not isinstance([event for _, event in EventReader(run_dir).read()][-1], Finished | Rejected | Stopped)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_while_writing_is_the_same_crash(run_dir):
    _write(run_dir, {"a.jsonl": _rows(3)})
    (run_dir / "shards").mkdir()
    (run_dir / "shards" / "train-00000.jsonl").symlink_to("/dev/full")
    done = _command("ingest", run_dir)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("fusion_data: disk_full:")


def test_memory_does_not_grow_with_the_file(run_dir):
    line = json.dumps({"text": "x" * 100_000}).encode() + b"\n"
    _write(run_dir, {"a.jsonl": (line + _rows(1)) * 400})
    tracemalloc.start()
    try:
        ingest(run_dir)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000  # bytes; the file has 40 million
    finally:
        tracemalloc.stop()


def test_validate_prints_the_report_of_the_service(tmp_path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_bytes(_rows(4))
    bad.write_bytes(_rows(4) + b"oops\n")
    fine = _command("validate", good)
    assert (fine.returncode, fine.stdout) == (0, "ok: 4 rows (4 text), 48 bytes of text in 1 files\n")
    wrong = _command("validate", good, bad)
    assert wrong.returncode == 1
    assert f"{bad}:5:1: not JSON" in wrong.stderr
    assert "1 errors: 1 invalid_json" in wrong.stderr
    lenient = _command("validate", bad, "--policy", "skip")
    assert lenient.returncode == 0
    assert "skipped: 1 rows" in lenient.stdout
    shown = _command("validate", good, bad, "--json")
    report = json.loads(shown.stdout)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert (report["code"], report["skipped_rows"], report["errors"][0]["line"]) == ("invalid_row", 1, 5)
    assert json.loads(_command("validate", good, "--json").stdout)["code"] is None
    assert _command("validate", tmp_path / "absent.jsonl").returncode == 2
    assert _command("validate", good, "--policy", "ignore").returncode == 2
    assert '{"text"' in _command("--help").stdout
