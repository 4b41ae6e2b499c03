"""A seed is a schedule, and a schedule's file is the same again."""

from pathlib import Path

from tests.faults import schedule
from tests.faults.injector import _BEGIN, _END, LINK_KINDS
from tests.faults.schedule import KINDS, Targets

SERVICES = ("api-0", "orchestrator-0", "worker-0")
TARGETS = Targets(SERVICES, ("worker-0",), tuple(f"{name}:s3" for name in SERVICES), tuple(KINDS))


def test_the_same_seed_gives_the_same_schedule_and_another_gives_another() -> None:
    first = schedule.make(7, 60, 40, TARGETS)
    assert first == schedule.make(7, 60, 40, TARGETS)
    assert first != schedule.make(8, 60, 40, TARGETS)
    assert [fault.at_s for fault in first] == sorted(fault.at_s for fault in first)


def test_each_kind_comes_before_any_comes_again() -> None:
    kinds = [fault.kind for fault in schedule.make(1, 60, len(KINDS), TARGETS)]
    assert sorted(kinds) == sorted(KINDS)


def test_a_schedule_is_read_as_it_was_written(tmp_path: Path) -> None:
    faults = schedule.make(3, 60, 30, TARGETS)
    schedule.write(tmp_path / "schedule.jsonl", faults)
    assert schedule.read(tmp_path / "schedule.jsonl") == faults


def test_every_kind_begins_and_ends() -> None:
    assert set(KINDS) == set(LINK_KINDS) | set(_BEGIN)
    assert set(_BEGIN) == set(_END)
