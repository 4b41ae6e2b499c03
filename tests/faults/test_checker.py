"""The checker finds what it is there to find: each test breaks one invariant of a history that has none broken."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from fusion_core.money import DEFAULT_PRICES, estimate_train

from tests.faults import checker
from tests.faults.checker import Seen, Violation
from tests.faults.cluster import POOL
from tests.faults.history import History

JOB, MODEL, FIRST, SECOND = (UUID(int=number) for number in range(1, 5))
ESTIMATE = estimate_train(DEFAULT_PRICES, 10**9, 2 * 10**9, 10**6)
TYPES = [
    ("queued", {}, None),
    ("claimed", {"attempt": 1}, None),
    ("metrics", {"step": 1}, FIRST),
    ("checkpoint", {"step": 1}, None),
    ("interrupted", {"reason": "lost"}, None),
    ("claimed", {"attempt": 2}, None),
    ("metrics", {"step": 2}, SECOND),
    ("checkpoint", {"step": 2}, None),
    ("completed", {}, None),
]


def a_job() -> Seen:
    """A job that lost a worker and completed."""
    events = [
        {"seq": number, "type": kind, "data": data, "attempt_id": attempt}
        for number, (kind, data, attempt) in enumerate(TYPES, 1)
    ]
    job: dict[str, Any] = {
        "id": JOB,
        "state": "completed",
        "pool": POOL,
        "idempotency_key": "key",
        "event_seq": len(events),
        "lease_epoch": 2,
        "retries": 1,
        "quarantined_at": None,
        "last_checkpoint_step": 2,
        "error": None,
        "output_model_id": MODEL,
        "estimate": msgspec.to_builtins(ESTIMATE),
        "spec": {"hyperparams": {"train_steps": 2, "output_name": "x"}},
    }
    return Seen(job, events, [{"id": MODEL}], [{"amount_microusd": ESTIMATE.total_microusd}], [], [1, 2])


def rules(seen: Seen, *, cancelled: bool = False) -> set[str]:
    found: list[Violation] = [*checker.ending(seen, cancelled=cancelled), *checker.numbering(seen)]
    found += [*checker.one_attempt_at_a_time(seen), *checker.progress(seen), *checker.money(seen)]
    return {violation.rule for violation in found}


def test_a_job_as_it_should_be_breaks_nothing() -> None:
    assert rules(a_job()) == set()


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("state", "running", "every job ends"),
        ("state", "failed", "no fault of the platform fails a job"),
        ("state", "cancelled", "only a customer cancels"),
        ("output_model_id", JOB, "one completed job, one model"),
        ("event_seq", 10, "events have no gaps and no repeats"),
        ("lease_epoch", 3, "every claim has its event"),
        ("last_checkpoint_step", 1, "checkpoints never go back"),
    ],
)
def test_a_row_that_is_wrong_is_found(field: str, value: object, rule: str) -> None:
    seen = a_job()
    seen.job[field] = value
    assert rule in rules(seen)


def test_what_is_missing_or_too_much_is_found() -> None:
    seen = a_job()
    assert "one completed job, one model" in rules(seen._replace(models=[]))
    assert "one completed job, one model" in rules(seen._replace(models=seen.models * 2))
    assert "one line in the ledger" in rules(seen._replace(ledger=[]))
    assert "one line in the ledger" in rules(seen._replace(ledger=seen.ledger * 2))
    assert "the bill is the estimate" in rules(seen._replace(ledger=[{"amount_microusd": 1}]))
    assert "the curve has every step" in rules(seen._replace(steps=[2]))
    assert "events have no gaps and no repeats" in rules(seen._replace(events=seen.events[1:]))


def test_two_attempts_at_once_are_found() -> None:
    twice = a_job()
    twice.events[4]["type"] = "notice"  # claimed again without having been taken back
    assert "one attempt at a time" in rules(twice)
    zombie = a_job()
    zombie.events[6]["attempt_id"] = FIRST  # the first attempt writes under the second's claim
    assert "one attempt at a time" in rules(zombie)


def test_checkpoints_that_go_back_or_are_lost_are_found() -> None:
    back = a_job()
    back.events[3]["data"]["step"] = 9
    assert "checkpoints never go back" in rules(back)
    lost = a_job()
    lost.events[2]["type"] = "checkpoint_lost"
    assert "no checkpoint is lost" in rules(lost)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "history.jsonl") as history:
        history.note("ada", "acknowledged", key="key", job=str(JOB))
        history.note("ada", "saw", job=str(JOB), status="completed", retries=1, checkpoint=2)
        for number, (kind, _, _) in enumerate(TYPES, 1):
            history.note("ada", "event", job=str(JOB), seq=number, type=kind)
        yield history


def seen_rules(history: History) -> set[str]:
    return {violation.rule for violation in checker.what_customers_saw(history, {str(JOB): a_job()})}


def test_customers_who_saw_what_happened_break_nothing(history: History) -> None:
    assert seen_rules(history) == set()
    assert len(history.path.read_bytes().splitlines()) == 2 + len(TYPES)


@pytest.mark.parametrize(
    ("what", "data", "rule"),
    [
        ("acknowledged", {"key": "other", "job": str(MODEL)}, "an acknowledged POST survives"),
        ("acknowledged", {"key": "key", "job": str(MODEL)}, "a repeated POST answers the same job"),
        ("vanished", {"job": str(JOB)}, "an acknowledged POST survives"),
        ("saw_anothers", {"job": str(JOB)}, "no account sees another's object"),
        ("customer_broke", {"error": "?"}, "the client raises only its own errors"),
        ("saw", {"job": str(JOB), "status": "running", "retries": 1, "checkpoint": 2}, "a terminal job never changes"),
        (
            "saw",
            {"job": str(JOB), "status": "completed", "retries": 0, "checkpoint": 2},
            "retries and checkpoints never go back",
        ),
        ("event", {"job": str(JOB), "seq": 11, "type": "completed"}, "events have no gaps and no repeats"),
        ("event", {"job": str(JOB), "seq": 9, "type": "completed"}, "events have no gaps and no repeats"),
        ("event", {"job": str(JOB), "seq": 10, "type": "completed"}, "events that were seen stay"),
    ],
)
def test_what_a_customer_must_not_see_is_found(history: History, what: str, data: dict[str, Any], rule: str) -> None:
    history.note("ada", what, **data)
    assert rule in seen_rules(history)
