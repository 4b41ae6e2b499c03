"""The files between worker and trainer: no event lost, doubled or read in half; no file seen in part."""

from pathlib import Path

import msgspec
import pytest
from fusion_core.trainer_protocol import (
    CONTROL_FILE,
    EVENTS_FILE,
    Evaluation,
    EventReader,
    EventWriter,
    IngestInput,
    IngestRun,
    PhaseChanged,
    Rejected,
    TrainerEvent,
    read_control,
    read_run,
    write_atomic,
    write_control,
    write_run,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

events = st.one_of(
    st.builds(PhaseChanged, phase=st.sampled_from(["preparing", "training"]), message=st.text()),
    st.builds(Rejected, code=st.just("invalid_row"), message=st.text(), errors=st.just(({"line": 1},))),
    st.builds(
        Evaluation,
        step=st.integers(0, 10**6),
        turn=st.integers(0, 10),
        perplexity=st.floats(1, 1e6),
        tokens=st.integers(0, 10**9),
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(events, max_size=8), data=st.data())
def test_every_event_is_read_once_however_the_file_grows(
    tmp_path: Path, written: list[TrainerEvent], data: st.DataObject
) -> None:
    """The bytes arrive in pieces cut anywhere, inside a line or a character."""
    content = b"".join(msgspec.json.encode(event) + b"\n" for event in written)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    path = tmp_path / EVENTS_FILE
    path.write_bytes(b"")
    reader, seen = EventReader(tmp_path), list[tuple[int, TrainerEvent]]()
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with path.open("ab") as file:
            file.write(content[start:end])
        seen += reader.read()
        assert len(seen) == content[:end].count(b"\n"), "complete lines only, and all of them"
    assert seen == list(enumerate(written, start=1))
    assert list(reader.read()) == []


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    assert list(reader.read()) == [], "no file yet"
    (tmp_path / EVENTS_FILE).write_bytes(b'{"type":"phase","phase":"trai')
    assert list(reader.read()) == []
    with (tmp_path / EVENTS_FILE).open("ab") as file:
        file.write(b'ning"}\n')
    assert list(reader.read()) == [(1, PhaseChanged(phase="training"))]


def test_what_the_writer_emits_is_readable_at_once(tmp_path: Path) -> None:
    writer, reader = EventWriter(tmp_path), EventReader(tmp_path)
    event = PhaseChanged(phase="growing", message="a line\nand a separator\u2028")
    writer.emit(event)
    assert list(reader.read()) == [(1, event)]
    writer.close()


def test_a_line_that_is_no_event_is_an_error(tmp_path: Path) -> None:
    (tmp_path / EVENTS_FILE).write_bytes(b'{"type":"gossip"}\n')
    with pytest.raises(msgspec.ValidationError, match="gossip"):
        list(EventReader(tmp_path).read())


def test_run_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run = IngestRun(job_id="j", lease_epoch=3, inputs=(IngestInput("/a", "a.jsonl"),))
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
    (tmp_path / "run.json").write_bytes(b'{"type":"ingest","job_id":"j","lease_epoch":1,"inputs":[],"surprise":1}')
    with pytest.raises(msgspec.ValidationError, match="surprise"):
        read_run(tmp_path)


def test_control_json_says_the_last_wish(tmp_path: Path) -> None:
    assert read_control(tmp_path) is None
    write_control(tmp_path, "drain")
    write_control(tmp_path, "cancel")
    assert read_control(tmp_path) == "cancel"
    assert [path.name for path in tmp_path.iterdir()] == [CONTROL_FILE]


def test_write_atomic_replaces_the_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"a much longer old content")
    with path.open("rb") as reader_of_old:
        write_atomic(path, b"new")
        assert reader_of_old.read() == b"a much longer old content"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_and_removes_its_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
