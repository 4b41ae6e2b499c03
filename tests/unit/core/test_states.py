"""The public status: one word for each state, phase and interruption."""

import pytest
from fusion_core.states import PHASES, TERMINAL, TRANSITIONS, State, Status, public_status, rows_of_status


@pytest.mark.parametrize(
    ("state", "phase", "interruption", "status"),
    [
        ("queued", None, None, "queued"),
        ("queued", None, "lost", "preempted"),
        ("queued", None, "crash", "preempted"),
        ("queued", None, "drain", "preempted"),
        ("running", None, None, "provisioning"),
        ("running", "preparing", None, "staging"),
        ("running", "diagnosing", None, "running"),
        ("running", "growing", None, "running"),
        ("running", "training", None, "running"),
        ("running", "checkpointing", None, "checkpointing"),
        ("running", "exporting", None, "uploading"),
        ("running", "training", "lost", "running"),
        ("stopped", None, None, "stopped"),
        ("completed", None, None, "completed"),
        ("completed", None, "lost", "completed"),
        ("failed", None, "crash", "failed"),
        ("cancelled", None, "lost", "cancelled"),
    ],
)
def test_the_status_of_a_job(state: str, phase: str | None, interruption: str | None, status: str) -> None:
    assert public_status(state, phase, interruption) is Status(status)


def test_every_state_leads_to_an_end_and_no_end_leads_on() -> None:
    reached = set(TERMINAL)
    while True:
        more = {before for before, after in TRANSITIONS if after in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(State)
    assert [pair for pair in TRANSITIONS if pair[0] in TERMINAL] == []


@pytest.mark.parametrize("status", Status)
def test_the_rows_of_a_status_are_those_that_show_it(status: Status) -> None:
    rows = rows_of_status(status)
    shown = {(State(state), phase or "", bool(lost)) for state in State for phase in PHASES for lost in (0, 1)
             if public_status(state, phase, "lost" if lost else None) == status}  # fmt: skip
    assert shown == {(rows.state, phase, lost) for phase in rows.phases for lost in rows.interrupted}
