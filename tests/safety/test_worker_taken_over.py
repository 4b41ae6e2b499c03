"""A worker's host that was taken over: everything that its login could try in the database beyond its own leased job.

Each worker has a login of its own here, as docs/operations.md asks for. What remains possible is in the threat model.
A worker may run its statements as functions and has no right to any table. The fence behind them is tried alone, too,
by statements that mallory makes up: her login is given what of the functions' rights to tables they use.
"""
# ruff: noqa: S608 - the statements are the test's own

import inspect
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
from fusion_core.db import attempts, roles
from fusion_core.db.attempts import Attempt, Claimer, NewModel, WorkerEvent
from fusion_core.db.checkpoints import NewCheckpoint, commit_checkpoint
from fusion_core.db.pool import OwnConnection, connect, queries
from fusion_core.db.worker_statements import STATEMENTS, WorkerConnection
from fusion_core.trainer_protocol import Manifest
from fusion_local.stack import Stack

from tests.integration.worker.conftest import POOL, Site

DENIED = asyncpg.InsufficientPrivilegeError


# What the worker's statements write and read of tables, as grants: with these, the fence alone stands in mallory's way.
ARMS = """
grant select on jobs, accounts_running, worker_crashes, base_models, datasets, shards, checkpoints, job_metrics, models,
    rehearsal_pools, workers, pools to {login};
grant update (
    state, lease_owner, lease_epoch, attempt_id, lease_expires_at, started_at, stopped_at, finished_at, phase, retries,
    last_interruption, not_before, quarantined_at, rung_at, crashes, losses, output_model_id, error, result, event_seq
) on jobs to {login};
grant insert on audit_log, job_events, job_metrics, checkpoints, models, ledger, outbox, shards, dataset_reports,
    rehearsal_pools, workers, pools, worker_crashes to {login};
grant update on job_metrics, checkpoints, datasets, workers, worker_crashes, pools to {login};
"""


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
    await owner.execute(f"drop owned by {login}; drop role {login}")
    await owner.close()


async def login(url: str) -> OwnConnection:
    return await connect(url, application_name="test", connection_class=WorkerConnection)


async def claimed(conn: OwnConnection, job_id: UUID) -> Attempt:
    attempt_id, worker_id = uuid4(), uuid4()
    await queries.register_worker(
        conn, id=worker_id, name="w", pool=POOL, spec_version=1, capabilities=[], version="1", gpus=1
    )
    claimer = Claimer(worker_id=worker_id, pool=POOL)
    assert await attempts.claim(conn, claimer, job_id, 0, attempt_id, 60.0) is not None
    return Attempt(job_id, 1, attempt_id)


@pytest.fixture
async def scene(site: Site, stack: Stack, database_name: str, mallorys_url: str) -> AsyncIterator[Scene]:
    honest = await login(stack.database_url(database_name, "worker"))
    mallory = await login(mallorys_url)
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
PAST_THE_FENCE = {
    "renew its lease": "update jobs set lease_expires_at = now() + interval '1 h' where id = '{job}'",
    "complete it": "update jobs set state = 'completed', finished_at = now(), lease_owner = null, "
    "lease_expires_at = null where id = '{job}'",
    "fail it": "update jobs set state = 'failed', finished_at = now(), error = '{}', lease_owner = null, "
    "lease_expires_at = null where id = '{job}'",
    "give it back": "update jobs set state = 'queued', lease_owner = null, lease_expires_at = null where id = '{job}'",
    "raise its epoch": "update jobs set lease_epoch = lease_epoch + 1 where id = '{mine}'",
    "keep it for ever": "update jobs set lease_expires_at = 'infinity' where id = '{mine}'",
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
    "act as an operator": "insert into audit_log (actor, action, target_type, target, reason) "
    "values ('ada', 'fail', 'job', '{job}', 'x')",
}
PAST_ITS_RIGHTS = PAST_THE_FENCE | {
    "hand it to another login": "update jobs set lease_login = 10 where id = '{mine}'",
    "move it to another account": "update jobs set account_id = '{account}' where id = '{mine}'",
    "order more": "update jobs set spec = '{}' where id = '{mine}'",
    "pay less": "update jobs set estimate = '{}' where id = '{mine}'",
    "go first": "update jobs set priority = 1000 where id = '{queued}'",
    "use up an account's limit": "update accounts_running set jobs = 1000 where account_id = '{account}'",
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


@pytest.fixture
async def victims(site: Site, scene: Scene) -> Scene:
    """With rows of each kind that could be changed."""
    await site.pool.execute("insert into pools (name) values ('elsewhere') on conflict do nothing")
    held = scene.fill("'{job}', 5, 1")
    await site.pool.execute(f"insert into job_metrics (job_id, step, epoch, point) values ({held}, '{{}}')")
    await site.pool.execute(
        "insert into checkpoints (job_id, step, epoch, attempt_id, format_version, turn_end, s3_prefix, manifest) "
        f"values ({held}, gen_random_uuid(), 1, true, 'y', '{{}}')"
    )
    return scene


async def not_refused(conn: OwnConnection, statements: dict[str, str], scene: Scene) -> list[str]:
    succeeded = []
    for what, statement in statements.items():
        try:
            await conn.execute(scene.fill(statement))
        except DENIED:
            continue
        succeeded.append(what)
    return succeeded


async def test_nothing_of_another_is_written(victims: Scene) -> None:
    assert await not_refused(victims.mallory, PAST_ITS_RIGHTS, victims) == []


async def test_the_fence_alone_keeps_it_from_writing(site: Site, victims: Scene) -> None:
    await arm(site, victims)
    assert await not_refused(victims.mallory, PAST_THE_FENCE, victims) == []


async def arm(site: Site, scene: Scene) -> None:
    await site.pool.execute(ARMS.format(login=await scene.mallory.fetchval("select session_user")))


async def rows_of_all_tables(site: Site) -> dict[str, str]:
    found = {}
    for record in await site.pool.fetch(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
    ):
        table = record["relname"]
        found[table] = await site.pool.fetchval(f"select md5(string_agg(t::text, ',' order by t::text)) from {table} t")
    return found


def of_the_victim(scene: Scene) -> dict[str, Any]:
    """A value for every parameter of the worker's statements, all of another worker's job."""
    names = {name: UUID(value) for name, value in scene.names.items() if name != "pool"}
    return {
        "id": names["worker"], "worker_id": names["worker"], "job_id": names["job"], "account_id": names["account"],
        "attempt_id": names["attempt"], "attempt_ids": [], "dataset_id": names["dataset"], "epoch": 1,
        "output_model_id": None, "base_model_id": None, "model_id": None, "subject": names["job"], "pool": POOL,
        "spec_version": 1, "capabilities": [], "version": "1", "gpus": 1, "gpu_class": "x", "gpu_count": 1,
        "state": "gone", "name": "x", "ttl_s": 9.0, "topic": "job.completed", "internal_topic": "x", "numbers": [1],
        "types": ["metrics"], "payloads": ['{"step": 5}'], "phase": "training", "step": 5, "format_version": 1,
        "turn_end": True, "s3_prefix": scene.fill("jobs/{job}/x"), "manifest": {}, "data": {}, "params": 1,
        "config": {}, "result": {}, "cost": {}, "amount_microusd": 1, "line_items": [], "tokens": 1, "error": {},
        "interruption": "lost", "outage": False, "loss_limit": 3, "type": "completed", "seq": 1, "price_version": 1,
        "split": "train", "ordinal": 0, "s3_key": "x", "bytes": 1, "rows": 1, "sha256": "0" * 64, "shard_count": 1,
        "heldout_rows": 0, "report": {"skipped_rows": 0}, "code": "x", "reason": "x", "actor": "ada",
        "action": "fail", "target_type": "job", "target": scene.names["job"], "before": None, "after": None,
        "request_id": None,
    }  # fmt: skip


@pytest.mark.parametrize("pending", ["", "cancel_requested_at", "stop_requested_at"])
async def test_no_statement_of_a_worker_changes_what_is_anothers(site: Site, victims: Scene, pending: str) -> None:
    """Every one of them, called with the ids, the epoch and the attempt of a job that another worker holds."""
    if pending:
        await site.pool.execute(victims.fill(f"update jobs set {pending} = now() where id = '{{job}}'"))
    values = of_the_victim(victims)
    values["base_model_id"] = await site.pool.fetchval("select id from base_models limit 1")
    before = await rows_of_all_tables(site)
    refused = set()
    for name in STATEMENTS:
        statement = getattr(queries, name)
        parameters = {parameter: values[parameter] for parameter in inspect.signature(statement).parameters}
        try:
            answer = statement(victims.mallory, **parameters)
            if inspect.isasyncgen(answer):
                async for _ in answer:
                    pass
            else:
                await answer
        except DENIED:
            refused.add(name)
        assert await rows_of_all_tables(site) == before, name
    assert {"renew_lease", "append_attempt_events", "insert_ledger", "insert_shard", "worker_seen"} <= refused


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


async def test_as_the_group_it_may_no_more_than_as_itself(site: Site, scene: Scene) -> None:
    await site.pool.execute(ARMS.format(login="fusion_worker"))
    await scene.mallory.execute("set role fusion_worker")
    for statement in (EVENT, "update jobs set phase = 'x' where id = '{job}'"):
        with pytest.raises(DENIED):
            await scene.mallory.execute(scene.fill(statement))


async def test_what_others_ask_the_database_is_not_shown(site: Site, scene: Scene) -> None:
    shown = await scene.mallory.fetch("select query from pg_stat_activity where usename <> current_user")
    assert {row["query"] for row in shown} <= {"<insufficient privilege>", "", None}


async def test_an_operators_drain_is_not_undone(site: Site, scene: Scene) -> None:
    await site.pool.execute("update workers set drain_requested_at = now(), drain_reason = 'ECC errors'")
    await arm(site, scene)
    owner = await site.pool.fetchval("select lease_owner from jobs where id = $1", scene.mine.job_id)
    with pytest.raises(DENIED):
        await scene.mallory.execute(
            "update workers set drain_requested_at = null, drain_reason = null where id = $1", owner
        )


async def test_a_quarantined_job_is_not_claimed(site: Site, scene: Scene) -> None:
    await site.pool.execute(scene.fill("update jobs set quarantined_at = now() where id = '{queued}'"))
    await arm(site, scene)
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
    await arm(site, scene)
    with pytest.raises(DENIED):  # it is over, and no longer its own
        await conn.execute(EVENT.replace("{job}", str(mine.job_id)))


async def test_the_counts_of_running_jobs_follow_its_claims_and_ends(site: Site, scene: Scene) -> None:
    count = "select jobs from accounts_running where account_id = $1"
    account = UUID(scene.names["my_account"])
    assert await site.pool.fetchval(count, account) == 1
    await attempts.release(scene.mallory, scene.mine)
    assert await site.pool.fetchval(count, account) == 0
