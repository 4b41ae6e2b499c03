"""Retention over real rows and objects: each rule counts in a dry run what it then takes, and takes nothing else."""

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from fusion_core import s3_keys
from fusion_core.db import attempts, checkpoints
from fusion_core.db.account_deletion import UnknownAccountError, close_account
from fusion_core.db.attempts import Attempt
from fusion_core.db.audit import By
from fusion_core.db.checkpoints import NewCheckpoint
from fusion_core.db.pool import OwnConnection, connect, queries
from fusion_core.db.rehearsal_pools import OPERATOR_ACCOUNT
from fusion_core.settings import CommonSettings
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import Manifest
from fusion_orchestrator import retention
from fusion_orchestrator.admin_cli.storage import prune_as
from fusion_orchestrator.prune import Pruner
from fusion_orchestrator.settings import OrchestratorSettings, RetentionSettings

AT_ONCE = timedelta(seconds=-60)


@pytest.fixture
async def conn(world: Any, settings: OrchestratorSettings) -> AsyncIterator[OwnConnection]:
    connection = await connect(settings.database_url, application_name="test")
    yield connection
    await connection.close()


async def took(conn: OwnConnection, settings: OrchestratorSettings) -> dict[str, int]:
    """What a pass takes, which is what the dry run before it counted."""
    expected = await retention.count(conn, settings)
    assert await retention.count(conn, settings) == expected, "a dry run takes nothing"
    taken = await retention.enforce(conn, settings)
    assert taken == expected
    assert set((await retention.enforce(conn, settings)).values()) == {0}, "nothing is left for a second pass"
    return {rule: rows for rule, rows in taken.items() if rows}


async def saved(world: Any, attempt: Attempt, *steps: int, turn_ends: tuple[int, ...] = ()) -> None:
    for step in steps:
        prefix = s3_keys.checkpoint(s3_keys.attempt(attempt.job_id, attempt.epoch, attempt.attempt_id), step)
        new = NewCheckpoint(
            step=step, turn_end=step in turn_ends, s3_prefix=prefix, manifest=Manifest(()), format_version=1
        )
        async with world.pool.acquire() as connection:
            await checkpoints.commit_checkpoint(connection, attempt, new)


async def kept_steps(conn: OwnConnection, job_id: UUID) -> list[int]:
    rows = await conn.fetch("select step from checkpoints where job_id = $1 and state = 'ok' order by step", job_id)
    return [row["step"] for row in rows]


async def test_a_job_that_may_go_on_keeps_its_newest_checkpoints_and_each_turns_end(
    world: Any, conn: OwnConnection, settings: OrchestratorSettings
) -> None:
    settings = msgspec.structs.replace(settings, keep_checkpoints=2)
    attempt = await world.claim(await world.queue_job())
    await saved(world, attempt, 10, 20, 30, 40, 50, turn_ends=(20,))
    assert await took(conn, settings) == {}, "they are too young"
    await conn.execute("update checkpoints set created_at = now() - interval '2 h' where step < 50")
    assert await took(conn, settings) == {"superseded checkpoints": 2}
    assert await kept_steps(conn, attempt.job_id) == [20, 40, 50]
    newest = await checkpoints.readable_checkpoints(conn, attempt.job_id)
    assert newest[0].step == await conn.fetchval("select last_checkpoint_step from jobs where id = $1", attempt.job_id)


async def test_an_ended_jobs_checkpoints_and_then_its_history_go(
    world: Any, conn: OwnConnection, settings: OrchestratorSettings
) -> None:
    job = await world.queue_job()
    attempt = await world.claim(job)
    await saved(world, attempt, 10, turn_ends=(10,))
    other = await world.claim(await world.queue_job())
    await saved(world, other, 10)
    async with world.pool.acquire() as connection:
        await attempts.fail(connection, attempt, "invalid_row", "no")
    assert await took(conn, settings) == {}
    await conn.execute("update jobs set finished_at = now() - interval '31 d' where id = $1", job.id)
    assert await took(conn, settings) == {"checkpoints of ended jobs": 1}
    await conn.execute("update jobs set finished_at = now() - interval '366 d' where id = $1", job.id)
    assert await retention.enforce(conn, settings) | {"events and metrics": 0} == dict.fromkeys(
        await retention.count(conn, settings), 0
    ), "its webhook has not been sent"
    await conn.execute("delete from outbox where job_id = $1", job.id)
    assert await took(conn, settings) == {"events and metrics": 1}
    assert await conn.fetchval("select count(*) from job_events where job_id = $1", job.id) == 0
    assert await conn.fetchval("select count(*) from job_events where job_id = $1", other.job_id) > 0


async def test_an_upload_that_no_dataset_took_goes_when_it_expires(
    world: Any, conn: OwnConnection, settings: OrchestratorSettings
) -> None:
    account_id = await world.account()
    for name, expires_s in (("late", -1), ("coming", 3600), ("taken", -1)):
        upload_id = await conn.fetchval("select uuidv7()")
        key = s3_keys.upload(account_id, upload_id, name)
        await queries.insert_upload(
            conn, id=upload_id, account_id=account_id, filename=name, content_type="x", s3_key=key,
            size=None, part_size=None, multipart_id=None, expires_s=expires_s,
        )  # fmt: skip
    dataset = await queries.insert_dataset(conn, account_id=account_id, name="data")
    await queries.insert_dataset_upload(
        conn, upload_id=upload_id, dataset_id=dataset["id"], ordinal=0, size=1, etag="x"
    )
    assert await took(conn, settings) == {"expired uploads": 1}
    assert {row["filename"] for row in await conn.fetch("select filename from uploads")} == {"coming", "taken"}


async def delete_account(world: Any, conn: OwnConnection) -> UUID:
    account_id: UUID = await world.account()
    await close_account(conn, account_id, By("test", "the contract has ended"))
    return account_id


async def test_a_deleted_account_leaves_stubs_of_its_ledger_and_no_object(
    world: Any, conn: OwnConnection, storage: Storage, settings: OrchestratorSettings
) -> None:
    await world.finish(await world.queue_job())
    waiting, held = await world.queue_job(), await world.claim(await world.queue_job())
    await saved(world, held, 10)
    prefix = s3_keys.attempt(held.job_id, held.epoch, held.attempt_id)
    await storage.put_bytes(f"{s3_keys.checkpoint(prefix, 10)}/manifest.json", b"x")
    await world.webhook("https://example.com/hook", "job.failed")
    account_id = await delete_account(world, conn)
    await close_account(conn, account_id, By("test", "said twice"))
    await world.webhook("https://example.com/late", "job.failed")  # a request that was under way
    assert await conn.fetchval("select count(*) from audit_log where action = 'delete_account'") == 1
    assert (await retention.enforce(conn, settings))["closed accounts"] == 0, "a job of it still runs"
    assert await conn.fetchval("select state from jobs where id = $1", waiting.id) == "cancelled"

    async with world.pool.acquire() as connection:
        await attempts.obey(connection, held)
    assert (await retention.enforce(conn, settings))["closed accounts"] == 1
    left = await conn.fetchrow(
        "select (select count(*) from accounts where id <> $1) as accounts, (select count(*) from jobs) as jobs, "
        "(select count(*) from datasets) as datasets, (select count(*) from shards) as shards, "
        "(select count(*) from job_events) as events, (select count(*) from checkpoints) as checkpoints, "
        "(select count(*) from outbox) as outbox, (select count(*) from webhook_endpoints) as webhooks",
        OPERATOR_ACCOUNT,
    )
    assert dict(left) == dict.fromkeys(left.keys(), 0)
    assert await conn.fetchval("select count(*) from ledger_stubs where account_id = $1", account_id) == 3
    with pytest.raises(attempts.LeaseLostError):
        async with world.pool.acquire() as connection:
            await attempts.renew(connection, held, 20)
    await storage.put_bytes(f"{prefix}/export/from-a-zombie", b"x")
    await Pruner(world.pool, storage, model_days=7, min_age=AT_ONCE).run()
    assert [item.key async for item in storage.list_prefix("")] == []


async def test_every_table_that_names_an_account_or_a_job_is_emptied(conn: OwnConnection) -> None:
    """A table that is added later must be thought of in account_deletion.sql."""
    rows = await conn.fetch(
        "select distinct table_name from information_schema.columns where table_schema = 'public' "
        "and column_name in ('account_id', 'job_id', 'dataset_id', 'upload_id', 'model_id', 'endpoint_id')"
    )
    views = {"claimable", "ready_jobs"}
    by_cascade = {"webhook_deliveries", "accounts_running", "worker_crashes"}
    kept = {"ledger_stubs", "audit_log"}
    emptied = queries.delete_account_rows.sql + queries.close_account.sql
    emptied += queries.delete_outbox_of_jobs.sql + queries.delete_histories.sql
    forgotten = {row["table_name"] for row in rows} - views - by_cascade - kept
    changed = set(re.findall(r"(?:delete from|update) (\w+) ", emptied))
    assert forgotten - changed == set()


async def test_the_operators_own_account_cannot_be_deleted(conn: OwnConnection) -> None:
    with pytest.raises(UnknownAccountError):
        await close_account(conn, OPERATOR_ACCOUNT, By("test", "no"))


async def test_a_deleted_models_files_stay_for_their_time_and_it_can_be_restored(
    world: Any, conn: OwnConnection, storage: Storage, common_settings: CommonSettings
) -> None:
    job = await world.queue_job()
    attempt = await world.claim(job)
    prefix = s3_keys.export(s3_keys.attempt(job.id, attempt.epoch, attempt.attempt_id))
    await storage.put_bytes(f"{prefix}/model.safetensors", b"x")
    model_id = await conn.fetchval("select uuidv7()")
    await world.pool.execute(
        "insert into models (id, account_id, job_id, name, version, params, config, s3_prefix, manifest) "
        "values ($1, $2, $3, 'grown', 1, 1, '{}', $4, '{}')",
        model_id, job.account_id, job.id, prefix,
    )  # fmt: skip
    async with world.pool.acquire() as connection:
        await attempts.fail(connection, attempt, "invalid_row", "no")
    await queries.delete_model(conn, model_id=model_id)
    assert (await Pruner(world.pool, storage, model_days=7, min_age=AT_ONCE).run()).attempt_objects == 0
    assert await queries.restore_model(conn, model_id=model_id, days=7) is not None
    await queries.delete_model(conn, model_id=model_id)
    await conn.execute("update models set deleted_at = now() - interval '8 d'")
    assert await queries.restore_model(conn, model_id=model_id, days=7) is None
    longer = RetentionSettings(**msgspec.structs.asdict(common_settings), deleted_model_days=9)
    assert (await prune_as(longer, AT_ONCE, By("test", "now"))).attempt_objects == 0, (
        "the command keeps to the settings"
    )
    assert (await Pruner(world.pool, storage, model_days=7, min_age=AT_ONCE).run()).attempt_objects == 1
