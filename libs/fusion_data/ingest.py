"""One attempt of an ingest job, under the run directory's protocol: check everything, then write shards."""

import time
from pathlib import Path

import msgspec
from fusion_core.trainer_protocol import (
    REPORT_FILE,
    EventWriter,
    Finished,
    IngestRun,
    PhaseChanged,
    Rejected,
    Stopped,
    StopReason,
    read_control,
    read_run,
    write_atomic,
)

from fusion_data.formats import read_rows
from fusion_data.report import Report, as_mappings
from fusion_data.rows import Row
from fusion_data.shards import ShardWriter
from fusion_data.source import Source
from fusion_data.split import Split
from fusion_data.survey import DatasetError, Survey, survey_files

_ERRORS_IN_OUTCOME = 20  # a glance; the report has the rest
_CONTROL_EVERY_S = 0.2


class _StopSeenError(Exception):
    """control.json asks for an end; not an error of the data."""

    def __init__(self, reason: StopReason) -> None:
        self.reason: StopReason = reason


class _ControlWatch:
    """Looks at control.json while files are read, a few times a second and before the first byte."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._next_look = 0.0

    def __call__(self, _: Source | None = None) -> None:
        """Raises _StopSeenError."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _CONTROL_EVERY_S
        reason = read_control(self._run_dir)
        if reason is not None:
            raise _StopSeenError(reason)


def ingest(run_dir: Path) -> None:
    """Run `run_dir/run.json` to an outcome event. Any exception that leaves here is a crash, to be retried."""
    run = read_run(run_dir)
    if not isinstance(run, IngestRun):
        raise TypeError(f"fusion_data runs ingest jobs, not {type(run).__name__}")
    events = EventWriter(run_dir)
    watch = _ControlWatch(run_dir)
    try:
        watch()
        events.emit(PhaseChanged(phase="preparing", message=f"checking {len(run.inputs)} files"))
        survey = survey_files(run.inputs, watch, policy=run.policy, scratch=run_dir)
        events.emit(PhaseChanged(phase="exporting", message=f"writing {survey.report.rows} rows to shards"))
        events.emit(Finished(result=_write_shards(run_dir, run, survey, events, watch)))
    except DatasetError as error:
        _write_report(run_dir, error.report)
        first = as_mappings(error.report.errors[:_ERRORS_IN_OUTCOME])
        events.emit(Rejected(code=error.code, message=str(error), errors=first))
    except _StopSeenError as stop:
        events.emit(Stopped(step=0, reason=stop.reason))
    finally:
        events.close()


def _write_shards(
    run_dir: Path, run: IngestRun, survey: Survey, events: EventWriter, watch: _ControlWatch
) -> dict[str, object]:
    """The second pass. Answers the counts of the dataset. Raises _StopSeenError or OSError."""
    folder = run_dir / "shards"
    folder.mkdir(exist_ok=True)
    report = survey.report
    split = Split(run.heldout_percent, survey.smallest_hash, survey.largest_hash)
    with (
        ShardWriter(folder, "train", run.shard_bytes, events.emit) as train,
        ShardWriter(folder, "heldout", run.shard_bytes, events.emit) as heldout,
    ):
        skipped = 0
        for file in run.inputs:
            for row in read_rows(Source(Path(file.path), file.filename, scratch=run_dir, watch=watch)):
                if isinstance(row, Row):
                    (heldout if split.holds_out(row.content) else train).write(row.encoded)
                else:
                    skipped += 1
        if (train.rows + heldout.rows, skipped) != (report.rows, report.skipped_rows):
            raise RuntimeError("the files changed while they were read")
    _write_report(run_dir, report)
    return {
        "rows": train.rows + heldout.rows,
        "heldout_rows": heldout.rows,
        "bytes": report.text_bytes,
        "shards": train.shards + heldout.shards,
        "files": len(run.inputs),
    }


def _write_report(run_dir: Path, report: Report) -> None:
    write_atomic(run_dir / REPORT_FILE, msgspec.json.encode(report))
