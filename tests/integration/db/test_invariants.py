"""The invariants find what breaks them: rows as no transition leaves them are written by hand."""

from typing import Any

import pytest
from fusion_core.db import attempts, checkpoints, jobs
from fusion_core.db.attempts import WorkerEvent

from tests.integration.db.invariants import History, all_jobs, unsettled, violations


@pytest.fixture
async def lived(world: Any) -> Any:
    """A job that was interrupted and has completed, beside one that was cancelled and one that runs."""
    async with world.pool.acquire() as conn:
        attempt = await world.running()
        await attempts.append_events(
            conn, attempt, [WorkerEvent(1, "grown", {}), WorkerEvent(2, "metrics", {"step": 1})]
        )
        await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 5))
        again = await world.claim(await attempts.release(conn, attempt))
        await checkpoints.commit_checkpoint(conn, again, world.new_checkpoint(again, 10))
        await attempts.complete_training(conn, again, world.new_model(again), {})
        other = await world.running()
        await attempts.append_events(conn, other, [WorkerEvent(1, "grown", {})])
        await checkpoints.commit_checkpoint(conn, other, world.new_checkpoint(other, 5))
        await jobs.cancel_job(conn, (await world.job(other.job_id)).account_id, other.job_id)
        await attempts.obey(conn, other)
        last = await world.running()
        await attempts.append_events(conn, last, [WorkerEvent(1, "phase", {})])
    return world


async def test_nothing_is_broken_in_a_life_as_it_should_be(lived: Any) -> None:
    async with lived.pool.acquire() as conn:
        found = await all_jobs(conn)
        assert len(found) == 3
        assert await violations(conn, found) == []
        assert [violation.rule for violation in await unsettled(conn, found)] == [2]


# In these statements RUNNING, COMPLETED and CANCELLED are the job that is it.
BREAKS = [
    (1, "update jobs set lease_epoch = 2 where id = RUNNING"),
    (1, "update job_events set attempt_id = uuidv7() where job_id = COMPLETED and type = 'grown'"),
    (1, "update job_events set type = 'phase' where job_id = RUNNING and type = 'claimed'"),
    (1, "update checkpoints set epoch = 9 where job_id = RUNNING or job_id = COMPLETED"),
    (
        1,
        "update models set s3_prefix = 'jobs/' || job_id || '/1-' || uuidv7() || '/export' where job_id = COMPLETED",
    ),
    (2, "update job_events set type = 'interrupted' where job_id = COMPLETED and type = 'completed'"),
    (2, "update accounts_running set jobs = jobs + 1 where jobs > 0"),
    (2, "update accounts_running set jobs = 0"),
    (2, "delete from accounts_running"),
    (2, "delete from outbox where job_id = COMPLETED and topic = 'job.completed'"),
    (3, "delete from models where job_id = COMPLETED"),
    (3, "update models set manifest = '{\"files\": []}' where job_id = COMPLETED"),
    (4, "delete from ledger where job_id = COMPLETED"),
    (4, "update ledger set amount_microusd = amount_microusd + 1 where job_id = COMPLETED"),
    (4, "update ledger set amount_microusd = amount_microusd - 1 where job_id = CANCELLED"),
    (4, "update ledger set tokens = tokens + 1 where job_id = COMPLETED"),
    (5, "update jobs set last_checkpoint_step = 7 where id = RUNNING"),
    (5, "update checkpoints set state = 'lost' where job_id = COMPLETED and step = 5"),
    (6, "delete from job_events where job_id = RUNNING and seq = 1"),
    (6, "update jobs set attempt_events = 7 where id = RUNNING"),
    (
        7,
        "update ledger set account_id = (select account_id from jobs where id = RUNNING) where job_id = COMPLETED",
    ),
    (8, "update jobs set lease_expires_at = now() + interval '1 hour' where id = RUNNING"),
]


async def break_rows(conn: Any, statement: str) -> None:
    """Change rows behind the product's back, with no foreign key and no trigger in the way."""
    for state in ("completed", "cancelled", "running"):
        job = await conn.fetchval("select id::text from jobs where state = $1", state)
        statement = statement.replace(state.upper(), f"'{job}'")
    await conn.execute("set session_replication_role = replica")
    assert not (await conn.execute(statement)).endswith(" 0")
    await conn.execute("set session_replication_role = origin")


@pytest.mark.parametrize(("rule", "statement"), BREAKS)
async def test_each_rule_finds_what_breaks_it(lived: Any, rule: int, statement: str) -> None:
    async with lived.pool.acquire() as conn:
        await break_rows(conn, statement)
        assert rule in {violation.rule for violation in await violations(conn, await all_jobs(conn))}


async def test_a_job_that_was_acknowledged_and_is_gone(lived: Any) -> None:
    async with lived.pool.acquire() as conn:
        unknown = (await lived.train()).account_id
        assert [str(found) for found in await violations(conn, [unknown])] == [
            f"rule 2, job {unknown}: an acknowledged job is gone: {{}}"
        ]


async def test_objects_are_those_that_the_rows_name(lived: Any) -> None:
    async with lived.pool.acquire() as conn:
        found = await all_jobs(conn)
        prefix = await conn.fetchval("select s3_prefix from models")
        whole = {f"{prefix}/config.json": "0" * 64}
        assert await violations(conn, found, objects=whole) == []
        for objects in ({}, dict.fromkeys(whole, "1" * 64)):
            assert [broken.rule for broken in await violations(conn, found, objects=objects)] == [3]


@pytest.mark.parametrize(
    ("rule", "statement"),
    [
        (1, "update jobs set lease_epoch = 1 where id = COMPLETED"),
        (2, "update jobs set finished_at = finished_at + interval '1 s' where id = COMPLETED"),
        (2, "update ledger set amount_microusd = 7 where job_id = COMPLETED"),
        (5, "update jobs set last_checkpoint_step = 0 where id = COMPLETED"),
        (6, "update job_events set data = '{}' where job_id = RUNNING and seq = 2"),
        (6, "update jobs set event_seq = 1 where id = RUNNING"),
    ],
)
async def test_history_finds_what_goes_back(lived: Any, rule: int, statement: str) -> None:
    history = History()
    async with lived.pool.acquire() as conn:
        found = await all_jobs(conn)
        for _ in range(2):
            assert await history.observe(conn, found) == []
        await break_rows(conn, statement)
        assert rule in {violation.rule for violation in await history.observe(conn, found)}
