"""Retention: rows that go when they are old, each kind with a period, a count and a dry run.

A rule only takes rows, or the names in them, away; the pruner deletes the objects that nothing names any more.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from fusion_core.db.account_deletion import empty_closed_accounts
from fusion_core.db.pool import Connection, queries

from fusion_orchestrator.settings import RetentionSettings

_BITE = 1000  # rows a statement: locks are short and a pass can be interrupted anywhere

log = structlog.get_logger()


class Rule(msgspec.Struct, frozen=True):
    """`count` answers how many rows the rule would take now, `bite` takes some and answers how many those were."""

    name: str
    period: str
    count: Callable[[Connection], Awaitable[int]]
    bite: Callable[[Connection], Awaitable[int]]


def rules(settings: RetentionSettings) -> list[Rule]:
    """What is kept and for how long; the table in docs/operations.md is compared with it."""
    keep, hours = settings.keep_checkpoints, settings.superseded_checkpoint_h
    ended_days, history_days = settings.ended_checkpoint_days, settings.history_days
    superseded = {"keep": keep, "hours": hours}
    return [
        Rule(
            "expired uploads",
            "when their URL expires",
            queries.count_expired_uploads,
            lambda conn: _taken(queries.delete_expired_uploads(conn, limit=_BITE)),
        ),
        Rule(
            "superseded checkpoints",
            f"{hours} h, all but the newest {keep} and each turn's end",
            lambda conn: queries.count_superseded_checkpoints(conn, **superseded),
            lambda conn: _taken(queries.delete_superseded_checkpoints(conn, **superseded, limit=_BITE)),
        ),
        Rule(
            "checkpoints of ended jobs",
            f"{ended_days} days after the end",
            lambda conn: queries.count_checkpoints_of_ended_jobs(conn, days=ended_days),
            lambda conn: _taken(queries.delete_checkpoints_of_ended_jobs(conn, days=ended_days, limit=_BITE)),
        ),
        Rule(
            "events and metrics",
            f"{history_days} days after the job's end",
            lambda conn: queries.count_old_histories(conn, days=history_days),
            lambda conn: _delete_histories(conn, history_days),
        ),
        Rule(
            "expired models",
            "when their customer said",
            queries.count_expired_models,
            lambda conn: _taken(queries.delete_expired_models(conn, limit=_BITE)),
        ),
    ]


async def count(conn: Connection, settings: RetentionSettings) -> dict[str, int]:
    """The dry run: what each rule would take now, and the accounts that are closed and not yet empty."""
    due = {rule.name: await rule.count(conn) for rule in rules(settings)}
    closed = [row async for row in queries.closed_accounts(conn, limit=_BITE)]
    return due | {"closed accounts": len(closed)}


async def enforce(conn: Connection, settings: RetentionSettings) -> dict[str, int]:
    """One pass of every rule; answers what each took. Any number of replicas may do it at once.

    Raises OSError, TimeoutError or asyncpg's errors; what was taken stays so.
    """
    taken = {rule.name: await _exhaust(conn, rule) for rule in rules(settings)}
    taken["closed accounts"] = len(await empty_closed_accounts(conn))
    log.info("retention_enforced", **{name.replace(" ", "_"): rows for name, rows in taken.items()})
    return taken


async def _exhaust(conn: Connection, rule: Rule) -> int:
    total = 0
    while rows := await rule.bite(conn):
        total += rows
    return total


async def _taken(deleted: Any) -> int:
    return len([row async for row in deleted])


async def _delete_histories(conn: Connection, days: int) -> int:
    ids = [row["id"] async for row in queries.old_histories(conn, days=days, limit=_BITE)]
    if ids:
        await queries.delete_histories(conn, job_ids=ids)
    return len(ids)
