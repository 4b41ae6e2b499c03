"""Why a queued job is not running: the closed list of reasons that `waits_for` answers in SQL, in words for people."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated, Literal, get_args

import msgspec

Reason = Literal[
    "quarantined", "account_paused", "pool_paused", "pool_cordoned", "account_limit", "deadline_passed", "backing_off",
    "rehearsal_pool", "no_worker", "behind",
]  # fmt: skip

REASONS: tuple[Reason, ...] = get_args(Reason)
SENTENCES: dict[Reason, str] = {
    "quarantined": "It lost its worker too often without progress. The operator looks into it.",
    "account_paused": "The operator has paused this account's jobs.",
    "pool_paused": "The operator has paused the machines that it needs.",
    "pool_cordoned": "The operator lets the machines that it needs finish their work and start no more.",
    "account_limit": "The account runs as many jobs at once as it may. It starts when one of them ends.",
    "deadline_passed": "Its deadline has passed. It is about to end as failed.",
    "backing_off": "It was interrupted and waits a while before it goes on.",
    "rehearsal_pool": "Text is being sampled from its base model, which it is going to rehearse.",
    "no_worker": "No machine of the kind that it needs is there at present.",
    "behind": "Every machine of the kind that it needs is busy.",
}
# Of these nobody can say when they are over: somebody has to act.
HELD: frozenset[Reason] = frozenset(
    {"quarantined", "account_paused", "pool_paused", "pool_cordoned", "deadline_passed"}
)

RECENT_JOBS = 20  # whose mean duration foretells the next
SAMPLING_WAIT = timedelta(minutes=30)  # as in the view ready_jobs


class Waiting(msgspec.Struct, frozen=True):
    """One reason why a job waits; `until` where it ends by itself."""

    reason: Reason
    message: str
    until: Annotated[datetime, msgspec.Meta(tz=True)] | None


def explain(reasons: Iterable[Reason], *, not_before: datetime, created_at: datetime) -> list[Waiting]:
    """The words for what `waits_for` answered of a job that may be claimed from `not_before` on, UTC."""
    until = {"backing_off": not_before, "rehearsal_pool": created_at + SAMPLING_WAIT}
    return [Waiting(reason, SENTENCES[reason], until.get(reason)) for reason in reasons]


def expected_wait_s(position: int, idle: int, workers: int, mean_s: float | None) -> float | None:
    """Seconds until a worker is free: busy ones finish a job every `mean_s / workers` on average (Little's law).

    `workers` are those of `serving_workers`, `idle` the idle of them. None: nobody serves, or nobody knows how long.
    """
    if position <= idle:
        return 0.0
    if workers == 0 or mean_s is None:
        return None
    return mean_s * (position - idle) / workers
