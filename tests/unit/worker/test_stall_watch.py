"""How long a trainer may be silent, by a clock of the test's own."""

import time
from pathlib import Path

import pytest
from fusion_core.trainer_protocol import Finished, IngestInput, IngestRun, Metrics, PhaseChanged
from fusion_worker.stall_watch import EXIT_S, QUIET_FACTOR, SLOW_STEPS, StallWatch, TrainerStalledError, data_bytes_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def step(number: int, seconds: float) -> Metrics:
    return Metrics(step=number, cycle=1, loss=1.0, lr=0.1, throughput=1 / seconds, tokens_per_s=1.0, grad_norm=1.0)


def silent_for(watch: StallWatch, clock: Clock, seconds: float) -> None:
    for _ in range(round(seconds)):
        clock.now += 1
        watch.look()


def test_once_steps_are_reported_the_deadline_is_the_setting(clock: Clock) -> None:
    watch = StallWatch(100, 0)
    watch.saw(PhaseChanged(phase="training"))
    watch.saw(step(7, 1))
    silent_for(watch, clock, 100)
    with pytest.raises(TrainerStalledError, match="101 s in phase training after step 7"):
        silent_for(watch, clock, 1)


def test_slow_steps_have_twenty_times_the_slowest_recent_one(clock: Clock) -> None:
    watch = StallWatch(100, 0)
    watch.saw(PhaseChanged(phase="training"))
    watch.saw(step(1, 30))
    assert watch.deadline_s == SLOW_STEPS * 30
    for number in range(SLOW_STEPS):
        watch.saw(step(2 + number, 1))
    assert watch.deadline_s == 100


@pytest.mark.parametrize("phase", ["preparing", "growing", "training", "exporting"])
def test_before_the_first_step_of_a_phase_silence_may_be_long(clock: Clock, phase: str) -> None:
    watch = StallWatch(100, 50_000_000)
    watch.saw(step(1, 1))
    watch.saw(PhaseChanged(phase=phase))  # type: ignore[arg-type]
    silent_for(watch, clock, QUIET_FACTOR * 100 + 100)
    with pytest.raises(TrainerStalledError):
        silent_for(watch, clock, 1)


def test_any_event_is_progress_and_time_that_nobody_looked_is_not_silence(clock: Clock) -> None:
    watch = StallWatch(10, 0)
    watch.saw(PhaseChanged(phase="training"))
    for number in range(1, 9):
        watch.saw(step(number, 0.1))
        silent_for(watch, clock, 9)
    clock.now += 100_000  # a daemon that was stopped, or waited for Postgres
    watch.saw(step(10, 0.1))
    assert not watch.look()


def test_after_the_outcome_the_process_has_a_minute_to_leave_and_then_its_work_still_counts(clock: Clock) -> None:
    watch = StallWatch(100, 0)
    watch.saw(Finished(result={}))
    silent_for(watch, clock, EXIT_S)
    clock.now += 1
    assert watch.look()


def test_the_data_of_a_run_is_what_it_reads(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"x" * 70)
    run = IngestRun(job_id="job", lease_epoch=1, inputs=(IngestInput(str(tmp_path / "rows"), "rows.jsonl"),))
    assert data_bytes_of(run) == 70
