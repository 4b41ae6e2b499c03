"""A worker's host that was taken over: everything that its login could try in the database beyond its own leased job.

Each worker has a login of its own here, as docs/operations.md asks for. What remains possible is in the threat model.
"""
# ruff: noqa: S608 - the statements are the test's own

from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
from fusion_core.db import attempts, roles
from fusion_core.db.attempts import Attempt, Claimer, NewModel, WorkerEvent
from fusion_core.db.checkpoints import NewCheckpoint, commit_checkpoint
from fusion_core.db.pool import OwnConnection, connect
from fusion_core.trainer_protocol import Manifest
from fusion_local.stack import Stack

from tests.integration.worker.conftest import POOL, Site

DENIED = asyncpg.InsufficientPrivilegeError


class Scene(NamedTuple):
    """A worker holds a job and an ingest of one account; mallory, another worker, holds a job of another account."""

    mallory: OwnConnection
    mine: Attempt
    names: dict[str, str]

    def fill(self, statement: str) -> str:
        for name, value in self.names.items():
            statement = statement.replace(f"{{{name}}}", value)
        return statement


@pytest.fixture
async def mallorys_url(stack: Stack, database_name: str) -> AsyncIterator[str]:
    parts = urlsplit(stack.database_url(database_name))
    owner = await connect(stack.database_url(database_name), application_name="test")
    login = f"mallory_{uuid4().hex[:8]}"
    await owner.execute(f"create role {login} login password 'x' in role fusion_worker")
    await roles.grant_roles(owner)  # a database's own rights are not copied with a template
    yield urlunsplit(parts._replace(netloc=f"{login}:x@{parts.hostname}:{parts.port}"))
    await owner.execute(f"drop role {login}")
    await owner.close()


async def claimed(conn: OwnConnection, job_id: UUID) -> Attempt:
    attempt_id, worker_id = uuid4(), uuid4()
    await conn.execute(
        "insert into workers (id, name, pool, spec_version, version, state) values ($1, 'w', $2, 1, '1', 'idle')",
        worker_id, POOL,
    )  # fmt: skip
    claimer = Claimer(worker_id=worker_id, pool=POOL)
    assert await attempts.claim(conn, claimer, job_id, 0, attempt_id, 60.0) is not None
    return Attempt(job_id, 1, attempt_id)


@pytest.fixture
async def scene(site: Site, stack: Stack, database_name: str, mallorys_url: str) -> AsyncIterator[Scene]:
    honest = await connect(stack.database_url(database_name, "worker"), application_name="test")
    mallory = await connect(mallorys_url, application_name="test")
    job = await claimed(honest, await site.train())
    dataset_id, _ = await site.ingest(b"x")
    reading = await claimed(honest, await site.pool.fetchval("select id from jobs where type = 'ingest'"))
    queued = await site.train("queued")
    mine = await claimed(mallory, await site.train("mine"))
    row = await site.job(job.job_id)
    theirs = await site.job(mine.job_id)
    yield Scene(
        mallory,
        mine,
        {
            "job": str(job.job_id), "attempt": str(job.attempt_id), "worker": str(row.lease_owner),
            "account": str(row.account_id), "mine": str(mine.job_id), "my_attempt": str(mine.attempt_id),
            "my_account": str(theirs.account_id), "dataset": str(dataset_id), "queued": str(queued),
            "reading": str(reading.job_id), "pool": POOL,
        },
    )  # fmt: skip
    await mallory.close()
    await honest.close()


EVENT = "insert into job_events (job_id, seq, type, data) values ('{job}', 99, 'completed', '{}')"
MODEL = (
    "insert into models (account_id, job_id, name, version, params, config, s3_prefix, manifest) "
    "values ('{account}', '{job}', 'x', 1, 1, '{}', 'jobs/{job}/1-x/export', '{}')"
)
BILL = (
    "insert into ledger (account_id, job_id, amount_microusd, line_items, tokens, price_version) "
    "values ('{account}', '{job}', 1, '[]', 0, 1)"
)
CHECKPOINT = (
    "insert into checkpoints (job_id, step, epoch, attempt_id, format_version, turn_end, s3_prefix, manifest) "
    "values ('{job}', 1, 1, '{attempt}', 1, true, 'jobs/{job}/x', '{}')"
)
SHARD = (
    "insert into shards (dataset_id, split, ordinal, s3_key, bytes, rows, sha256) "
    "values ('{dataset}', 'train', 0, 'x', 1, 1, repeat('0', 64))"
)
WRITES = {
    "renew its lease": "update jobs set lease_expires_at = now() + interval '1 h' where id = '{job}'",
    "complete it": "update jobs set state = 'completed', finished_at = now(), lease_owner = null, "
    "lease_expires_at = null where id = '{job}'",
    "fail it": "update jobs set state = 'failed', finished_at = now(), error = '{}', lease_owner = null, "
    "lease_expires_at = null where id = '{job}'",
    "give it back": "update jobs set state = 'queued', lease_owner = null, lease_expires_at = null where id = '{job}'",
    "raise its epoch": "update jobs set lease_epoch = lease_epoch + 1 where id = '{mine}'",
    "keep it for ever": "update jobs set lease_expires_at = 'infinity' where id = '{mine}'",
    "hand it to another login": "update jobs set lease_login = 10 where id = '{mine}'",
    "move it to another account": "update jobs set account_id = '{account}' where id = '{mine}'",
    "order more": "update jobs set spec = '{}' where id = '{mine}'",
    "pay less": "update jobs set estimate = '{}' where id = '{mine}'",
    "go first": "update jobs set priority = 1000 where id = '{queued}'",
    "count its events up": "update jobs set event_seq = event_seq + 1 where id = '{queued}'",
    "write its event": EVENT,
    "write an event of a queued job": EVENT.replace("{job}", "{queued}"),
    "ring its webhooks": "insert into outbox (job_id, seq, topic) values ('{job}', 1, 'job.completed')",
    "write its curve": "insert into job_metrics (job_id, step, epoch, point) values ('{job}', 1, 9, '{}')",
    "overwrite its curve": "update job_metrics set epoch = 9, point = '{}' where job_id = '{job}'",
    "save its checkpoint": CHECKPOINT,
    "lose its checkpoint": "update checkpoints set state = 'lost' where job_id = '{job}'",
    "name another job's objects": CHECKPOINT.replace("'{job}', 1, 1", "'{mine}', 1, 1"),
    "publish its model": MODEL,
    "publish into another account": MODEL.replace("'{job}', 'x'", "'{mine}', 'x'"),
    "publish another job's objects": MODEL.replace("'{account}', '{job}'", "'{my_account}', '{mine}'"),
    "bill it": BILL,
    "bill its own job before the end": BILL.replace("'{account}', '{job}'", "'{my_account}', '{mine}'"),
    "bill another account for its own": BILL.replace("'{account}', '{job}'", "'{account}', '{mine}'"),
    "add shards": SHARD,
    "report on its dataset": "insert into dataset_reports (dataset_id, report) values ('{dataset}', '{}')",
    "declare its dataset ready": "update datasets set status = 'failed', error = '{}' where id = '{dataset}'",
    "give it a rehearsal pool": "insert into rehearsal_pools (job_id, base_model_id, manifest) "
    "select '{job}', id, '{}' from base_models limit 1",
    "drain its worker": "update workers set drain_requested_at = now(), drain_reason = 'x' where id = '{worker}'",
    "bury its worker": "update workers set state = 'gone' where id = '{worker}'",
    "blame its worker": "insert into worker_crashes (worker_id, job_id, subject, code) "
    "values ('{worker}', '{job}', '{job}', 'x')",
    "rename a pool's machines": "update pools set gpu_class = 'x', gpu_count = 1 where name = 'elsewhere'",
    "use up an account's limit": "update accounts_running set jobs = 1000 where account_id = '{account}'",
    "act as an operator": "insert into audit_log (actor, action, target_type, target, reason) "
    "values ('ada', 'fail', 'job', '{job}', 'x')",
    "make an account": "insert into accounts (name) values ('x')",
    "make a key": "insert into api_keys (account_id, name, prefix, secret_sha256, scopes) "
    "values ('{account}', 'x', 'fusion_live_', sha256('x'), '{read}')",
    "pause dispatch": "insert into dispatch_pauses (pool, reason) values ('{pool}', 'x')",
    "change prices": "update prices set price_table = '{}'",
    "delete a job": "delete from jobs where id = '{mine}'",
    "delete events": "delete from job_events",
    "delete a model": "delete from models",
}
READS = [
    "select secret_sha256 from api_keys", "select url from webhook_endpoints", "select id from webhook_deliveries",
    "select secret_sha256 from operator_tokens", "select amount_microusd from ledger", "select name from accounts",
    "select actor from audit_log", "select data from job_events",
    "select report from dataset_reports", "select topic from outbox", "select error from datasets",
    "select request_sha256 from idempotency_keys", "select rolpassword from pg_authid",
]  # fmt: skip
SHADOWS = [
    "create temporary table jobs (id uuid)", "create table public.mine (x int)", "create schema mine",
    "create function public.now() returns timestamptz language sql as 'select pg_catalog.now()'",
    "create or replace function keep_workers_fenced() returns trigger language plpgsql as 'begin return new; end'",
    "alter table jobs disable trigger job_changes_of_workers", "drop trigger job_changes_of_workers on jobs",
    "set session_replication_role = replica", "set role fusion_orchestrator", "set role fusion_api",
    "set session authorization postgres", "grant fusion_orchestrator to current_user", "create role mine",
    "alter role current_user superuser", "copy jobs to program 'id'", "select pg_read_file('/etc/passwd')",
    "do 'begin lock table jobs in access exclusive mode; end'",
    "do 'begin lock table workers in access exclusive mode; end'",
    "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres'",
    "create extension dblink", "alter system set fsync = off", "alter table jobs add x int",
]  # fmt: skip


async def test_nothing_of_another_is_written(site: Site, scene: Scene) -> None:
    await site.pool.execute("insert into pools (name) values ('elsewhere') on conflict do nothing")
    held = scene.fill("'{job}', 5, 1")
    await site.pool.execute(f"insert into job_metrics (job_id, step, epoch, point) values ({held}, '{{}}')")
    await site.pool.execute(
        "insert into checkpoints (job_id, step, epoch, attempt_id, format_version, turn_end, s3_prefix, manifest) "
        f"values ({held}, gen_random_uuid(), 1, true, 'y', '{{}}')"
    )
    succeeded = []
    for what, statement in WRITES.items():
        try:
            await scene.mallory.execute(scene.fill(statement))
        except DENIED:
            continue
        succeeded.append(what)
    assert succeeded == []


@pytest.mark.parametrize("statements", [READS, SHADOWS], ids=["reads", "shadows"])
async def test_no_secret_is_read_and_nothing_shadowed(scene: Scene, statements: list[str]) -> None:
    succeeded = []
    for statement in statements:
        try:
            await scene.mallory.execute(statement)
        except (DENIED, asyncpg.ReadOnlySQLTransactionError):
            continue
        succeeded.append(statement)
    assert succeeded == []


async def test_as_the_group_it_may_no_more_than_as_itself(scene: Scene) -> None:
    await scene.mallory.execute("set role fusion_worker")
    for statement in (EVENT, "update jobs set phase = 'x' where id = '{job}'"):
        with pytest.raises(DENIED):
            await scene.mallory.execute(scene.fill(statement))


async def test_what_others_ask_the_database_is_not_shown(site: Site, scene: Scene) -> None:
    shown = await scene.mallory.fetch("select query from pg_stat_activity where usename <> current_user")
    assert {row["query"] for row in shown} <= {"<insufficient privilege>", "", None}


async def test_an_operators_drain_is_not_undone(site: Site, scene: Scene) -> None:
    await site.pool.execute("update workers set drain_requested_at = now(), drain_reason = 'ECC errors'")
    owner = await site.pool.fetchval("select lease_owner from jobs where id = $1", scene.mine.job_id)
    with pytest.raises(DENIED):
        await scene.mallory.execute(
            "update workers set drain_requested_at = null, drain_reason = null where id = $1", owner
        )


async def test_a_quarantined_job_is_not_claimed(site: Site, scene: Scene) -> None:
    await site.pool.execute(scene.fill("update jobs set quarantined_at = now() where id = '{queued}'"))
    with pytest.raises(DENIED):
        await scene.mallory.execute(
            scene.fill(
                "update jobs set state = 'running', lease_epoch = 1, attempt_id = gen_random_uuid(), "
                "lease_owner = gen_random_uuid(), lease_expires_at = now(), started_at = now() where id = '{queued}'"
            )
        )


async def test_its_own_job_it_may_do(site: Site, scene: Scene) -> None:
    """From first to last, so that the refusals above are not of everything."""
    conn, mine = scene.mallory, scene.mine
    assert await attempts.append_events(conn, mine, [WorkerEvent(1, "metrics", {"step": 1, "loss": 2.0})]) == 1
    prefix = f"jobs/{mine.job_id}/1-{mine.attempt_id}"
    saved = NewCheckpoint(step=2, turn_end=True, s3_prefix=f"{prefix}/2", manifest=Manifest(()), format_version=1)
    await commit_checkpoint(conn, mine, saved)
    await attempts.renew(conn, mine, 60)
    model = NewModel(name="m", params=2, config={}, s3_prefix=f"{prefix}/export", manifest=Manifest(()))
    assert (await attempts.complete_training(conn, mine, model, {})).state == "completed"
    assert await site.pool.fetchval("select count(*) from ledger where job_id = $1", mine.job_id) == 1
    with pytest.raises(DENIED):  # it is over, and no longer its own
        await conn.execute(EVENT.replace("{job}", str(mine.job_id)))


async def test_the_counts_of_running_jobs_follow_its_claims_and_ends(site: Site, scene: Scene) -> None:
    count = "select jobs from accounts_running where account_id = $1"
    account = UUID(scene.names["my_account"])
    assert await site.pool.fetchval(count, account) == 1
    await attempts.release(scene.mallory, scene.mine)
    assert await site.pool.fetchval(count, account) == 0
