"""What the random interleavings would find: a guard is taken out of the SQL, with the constraint behind it, and a short
life in which it matters is lived with and without it."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosql
import fusion_core.db
import pytest
from fusion_core.db.pool import queries

from tests.integration.db.fleet import Fleet

SQL = {
    name: text
    for path in (Path(fusion_core.db.__file__).parent / "sql").glob("*.sql")
    for name, text in re.findall(
        r"^(?=-- name: (\w+))((?:.(?!^-- name:))*.)", path.read_text(), re.MULTILINE | re.DOTALL
    )
}
HELD, OTHER_EPOCH, OTHER_ATTEMPT = 0, 8, 9  # places of `Fleet.attempt`


async def completes_at_another_epoch(fleet: Fleet) -> None:
    await fleet.attempt(HELD)
    await fleet.complete(await fleet.attempt(OTHER_EPOCH))


async def renews_as_another_attempt(fleet: Fleet) -> None:
    await fleet.attempt(HELD)
    await fleet.renew(await fleet.attempt(OTHER_ATTEMPT))


async def is_reclaimed_by_a_late_reaper(fleet: Fleet) -> None:
    await fleet.reclaim(await fleet.attempt(HELD))


async def is_cancelled_and_completes(fleet: Fleet) -> None:
    attempt = await fleet.attempt(HELD)
    await fleet.cancel(attempt.job_id)
    await fleet.complete(attempt)


async def repeats_a_batch(fleet: Fleet) -> None:
    attempt = await fleet.attempt(HELD)
    await fleet.report(attempt, 2, 0, "phase")
    await fleet.report(attempt, 1, 2, "phase")


async def completes(fleet: Fleet) -> None:
    await fleet.complete(await fleet.attempt(HELD))


async def loses_a_checkpoint(fleet: Fleet) -> None:
    attempt = await fleet.attempt(HELD)
    await fleet.checkpoint(attempt, 5)
    await fleet.lose_checkpoint(attempt)


async def renews_late(fleet: Fleet) -> None:
    attempt = await fleet.attempt(HELD)
    await fleet.clock.advance(30)
    await fleet.renew(attempt)


async def is_rung_for(fleet: Fleet) -> None:
    assert await fleet.ring() is not None


async def is_pruned_between_attempts(fleet: Fleet) -> None:
    attempt = await fleet.attempt(HELD)
    await fleet.checkpoint(attempt, 5)
    await fleet.release(attempt)
    await fleet.prune()


Life = Callable[[Fleet], Awaitable[None]]
ANY_EPOCH, ANY_ATTEMPT = "lease_epoch >= :epoch - 1000", "num_nulls(:attempt_id::uuid) = 0"
TWICE = "gpu_seconds from completed, generate_series(1, 2)"
# A life, the constraint that would stop it before anybody sees it, and (query, what is in it, what is then).
BROKEN: list[tuple[Life, str, list[tuple[str, str, str]]]] = [
    (completes_at_another_epoch, "", [("complete_training", "lease_epoch = :epoch", ANY_EPOCH)]),
    (renews_as_another_attempt, "", [("renew_lease", "attempt_id = :attempt_id", ANY_ATTEMPT)]),
    (
        is_reclaimed_by_a_late_reaper,
        "",
        [("lock_expired", "state = 'running' and ", ""), ("lock_expired", " and lease_expires_at < now()", "")],
    ),
    (
        is_cancelled_and_completes,
        "alter table jobs drop constraint jobs_check8",
        [("complete_training", "and cancel_requested_at is null", "")],
    ),
    (
        repeats_a_batch,
        "drop index job_events_once",
        [("append_attempt_events", "where number > held.attempt_events", "")],
    ),
    (
        completes,
        "alter table ledger drop constraint ledger_job_id_key",
        [("complete_training", "gpu_seconds from completed", TWICE)],
    ),
    (loses_a_checkpoint, "", [("fall_back_checkpoint", "where id = :job_id;", "where id = :job_id and false;")]),
    (renews_late, "", [("renew_lease", "returning", "and lease_expires_at > now() returning")]),
    (is_rung_for, "", [("ring_jobs", "ring_count = due.ring_count", "ring_count >= due.ring_count")]),
    (is_pruned_between_attempts, "", [("attempt_names", "and state = 'ok'", "and false")]),
]


async def live(world: Any, life: Life) -> None:
    fleet = Fleet(world)
    await fleet.begin()
    try:
        await fleet.submit("train", 0, "key")
        await life(fleet)
        assert [str(broken) for broken in await fleet.broken()] == []
    finally:
        await fleet.leave()


@pytest.mark.parametrize(("life", "constraint", "changes"), BROKEN, ids=[life.__name__ for life, _, _ in BROKEN])
async def test_a_missing_guard_is_found(
    world: Any, monkeypatch: pytest.MonkeyPatch, life: Life, constraint: str, changes: list[tuple[str, str, str]]
) -> None:
    await live(world, life)
    if constraint:
        await world.pool.execute(constraint)
    texts: dict[str, str] = {}
    for name, old, new in changes:
        text = texts.get(name, SQL[name])
        assert old in text, f"{name} has no {old!r} any more: break it in another way"
        texts[name] = text.replace(old, new)
    for name, text in texts.items():
        monkeypatch.setattr(queries, name, getattr(aiosql.from_str(text, "asyncpg"), name))
    with pytest.raises(AssertionError):
        await live(world, life)
