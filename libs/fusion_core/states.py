"""The states of a job, the transitions between them, and the one place where the public status word is derived.

`transitions.sql` holds the only statements that assign the columns of a job's state; docs/states.md draws this table
and a test compares all three.
"""

from enum import StrEnum
from typing import NamedTuple

STOPPED_EXPIRES_DAYS = 30
CRASH_BUDGET = 3  # crashes in a row without a new checkpoint, after which the job fails
DEADLINE_S = 14 * 86_400.0  # from its creation a job may take this long, stopped time apart
INTERNAL_DEADLINE_S = 86_400.0  # reading a dataset, sampling a base
FAILING_WORKER_LIMIT = 3  # jobs in a row that crashed on a worker, after which it is drained
LOSS_LIMIT = 5  # workers lost in a row without a new checkpoint, after which the job waits for the operator


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

# (from, to) -> the named statements of transitions.sql that make it.
TRANSITIONS: dict[tuple[State, State], frozenset[str]] = {
    (State.QUEUED, State.RUNNING): frozenset({"claim_job"}),
    (State.RUNNING, State.RUNNING): frozenset({"renew_lease", "request_cancel", "request_stop"}),
    (State.RUNNING, State.COMPLETED): frozenset({"complete_job", "complete_training"}),
    (State.RUNNING, State.FAILED): frozenset({"fail_job"}),
    (State.RUNNING, State.CANCELLED): frozenset({"cancel_running_job"}),
    (State.RUNNING, State.STOPPED): frozenset({"stop_running_job"}),
    (State.RUNNING, State.QUEUED): frozenset({"requeue_interrupted_job", "release_job"}),
    (State.QUEUED, State.QUEUED): frozenset({"retry_queued_job"}),
    (State.QUEUED, State.CANCELLED): frozenset({"cancel_idle_job"}),
    (State.QUEUED, State.FAILED): frozenset({"fail_idle_job"}),
    (State.QUEUED, State.STOPPED): frozenset({"stop_queued_job"}),
    (State.STOPPED, State.QUEUED): frozenset({"resume_job"}),
    (State.STOPPED, State.CANCELLED): frozenset({"cancel_idle_job"}),
    (State.STOPPED, State.FAILED): frozenset({"fail_idle_job"}),
}


class Status(StrEnum):
    """What GET /jobs/{id} shows."""

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    STAGING = "staging"
    RUNNING = "running"
    CHECKPOINTING = "checkpointing"
    UPLOADING = "uploading"
    COMPLETED = "completed"
    FAILED = "failed"
    PREEMPTED = "preempted"
    STOPPED = "stopped"
    CANCELLED = "cancelled"


PHASES = (None, "preparing", "diagnosing", "growing", "training", "checkpointing", "exporting")
_RUNNING_STATUS = {
    None: Status.PROVISIONING,
    "preparing": Status.STAGING,
    "checkpointing": Status.CHECKPOINTING,
    "exporting": Status.UPLOADING,
}


def public_status(state: str, phase: str | None, last_interruption: str | None) -> Status:
    """The status word of a job. A job that was interrupted shows `preempted` until it is claimed again."""
    if state == State.RUNNING:
        return _RUNNING_STATUS.get(phase, Status.RUNNING)
    if state == State.QUEUED and last_interruption is not None:
        return Status.PREEMPTED
    return Status(state)


class StatusRows(NamedTuple):
    """The rows that show one status: their state, the phases among which theirs is, and whether interrupted."""

    state: State
    phases: list[str]  # "" for none
    interrupted: list[bool]


def rows_of_status(status: Status) -> StatusRows:
    """The inverse of `public_status`, for lists of jobs by status."""
    shown = [
        (state, phase or "", interruption is not None)
        for state in State
        for phase in PHASES
        for interruption in (None, "lost")
        if public_status(state, phase, interruption) == status
    ]
    states, phases, interrupted = (list(dict.fromkeys(column)) for column in zip(*shown, strict=True))
    (state,) = states
    return StatusRows(state, phases, interrupted)
