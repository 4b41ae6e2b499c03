"""What each service's login can do in the database, tried as that login."""
# ruff: noqa: S608 - the statements are the tests' own

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
from fusion_core.db import roles
from fusion_core.db.attempts import Claimer, claim
from fusion_core.db.pool import OwnConnection, connect, queries
from fusion_local.stack import Stack

from tests.integration.worker.conftest import POOL, Site

DENIED = asyncpg.InsufficientPrivilegeError
KEYS_AND_LOGS = ("api_keys", "webhook_endpoints", "webhook_deliveries", "operator_tokens", "audit_log")


@pytest.fixture
async def worker(stack: Stack, database_name: str) -> AsyncIterator[OwnConnection]:
    connection = await connect(stack.database_url(database_name, "worker"), application_name="test")
    yield connection
    await connection.close()


@pytest.fixture
async def api(stack: Stack, database_name: str) -> AsyncIterator[OwnConnection]:
    connection = await connect(stack.database_url(database_name, "api"), application_name="test")
    yield connection
    await connection.close()


@pytest.mark.parametrize("table", [*KEYS_AND_LOGS, "accounts", "idempotency_keys", "ledger"])
async def test_a_worker_reads_no_key_webhook_account_or_log(worker: OwnConnection, table: str) -> None:
    with pytest.raises(DENIED):
        await worker.execute(f"select * from {table}")


async def test_a_worker_deletes_nothing(worker: OwnConnection) -> None:
    tables = await worker.fetch(
        "select oid::regclass::text as name from pg_class where relnamespace = 'public'::regnamespace "
        "and relkind in ('r', 'p')"
    )
    assert len(tables) > 20
    for privilege in ("delete", "truncate", "references", "trigger"):
        held = [
            row["name"]
            for row in tables
            if await worker.fetchval("select has_table_privilege($1, $2)", row["name"], privilege)
        ]
        notes = ["worker_crashes"] if privilege == "delete" else []  # of the worker itself
        assert held == notes, privilege


@pytest.mark.parametrize(
    "change",
    [
        "account_id = gen_random_uuid()", "spec = '{}'", "estimate = '{}'", "priority = 100", "reserved_microusd = 0",
        "gpu_seconds = 0", "cancel_requested_at = null", "idempotency_key = 'other'", "deadline_at = null",
    ],
)  # fmt: skip
async def test_a_worker_cannot_change_what_a_customer_ordered(site: Site, worker: OwnConnection, change: str) -> None:
    await running(site, worker)
    with pytest.raises(DENIED):
        await worker.execute(f"update jobs set {change}")


async def running(site: Site, worker: OwnConnection) -> UUID:
    """A job claimed through the worker's own login."""
    job_id = await site.train()
    assert await claim(worker, Claimer(worker_id=uuid4(), pool=POOL), job_id, 0, uuid4(), 60.0) is not None
    return job_id


@pytest.mark.parametrize(
    "change",
    [
        "lease_epoch = lease_epoch + 1",
        "attempt_id = gen_random_uuid()",
        "lease_owner = gen_random_uuid()",
        "lease_epoch = 0",
    ],
)
async def test_a_worker_cannot_take_a_running_job_from_another(site: Site, worker: OwnConnection, change: str) -> None:
    await running(site, worker)
    with pytest.raises(DENIED, match="a worker may not change job"):
        await worker.execute(f"update jobs set {change}")


@pytest.mark.parametrize(
    "change",
    [
        "state = 'failed', finished_at = now(), error = '{}'",
        "not_before = now() - interval '1 day'",
        "retries = 0",
        "state = 'running', lease_owner = gen_random_uuid(), attempt_id = gen_random_uuid(), "
        "lease_epoch = lease_epoch + 2, lease_expires_at = now(), started_at = now()",
    ],
)
async def test_a_worker_cannot_touch_a_job_that_it_has_not_claimed(
    site: Site, worker: OwnConnection, change: str
) -> None:
    await site.train()
    with pytest.raises(DENIED, match="a worker may not change job"):
        await worker.execute(f"update jobs set {change}")


async def test_a_worker_cannot_bring_back_a_job_that_has_ended(site: Site, worker: OwnConnection) -> None:
    job_id = await site.train()
    await queries.cancel_idle_job(site.pool, job_id=job_id)
    for change in ("last_checkpoint_step = 9", "state = 'queued', finished_at = null", "event_seq = 99"):
        with pytest.raises((DENIED, asyncpg.RestrictViolationError)):
            await worker.execute(f"update jobs set {change}")


@pytest.mark.parametrize("table", ["operator_tokens", "audit_log"])
async def test_the_api_knows_nothing_of_operators(api: OwnConnection, table: str) -> None:
    for statement in (f"select * from {table}", f"delete from {table}", f"insert into {table} default values"):
        with pytest.raises(DENIED):
            await api.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "update ledger set amount_microusd = 0", "delete from ledger", "update prices set price_table = '{}'",
        "insert into models default values", "delete from job_events", "update job_events set data = '{}'",
        "insert into accounts (name) values ('x')", "update workers set state = 'gone'",
    ],
)  # fmt: skip
async def test_the_api_changes_neither_bills_prices_nor_the_past(api: OwnConnection, statement: str) -> None:
    with pytest.raises(DENIED):
        await api.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "update audit_log set reason = 'x'", "delete from audit_log", "insert into operator_tokens default values",
        "update operator_tokens set role = 'operator'", "select secret_sha256 from api_keys",
        "insert into api_keys default values", "update ledger set amount_microusd = 0",
    ],
)  # fmt: skip
async def test_the_orchestrator_makes_no_keys_and_does_not_rewrite_its_log(
    stack: Stack, database_name: str, statement: str
) -> None:
    connection = await connect(stack.database_url(database_name, "orchestrator"), application_name="test")
    try:
        with pytest.raises(DENIED):
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize("statement", ["create table mine (x int)", "select * from pg_authid", "create role mine"])
async def test_no_service_is_the_owner(api: OwnConnection, worker: OwnConnection, statement: str) -> None:
    for connection in (api, worker):
        with pytest.raises(DENIED):
            await connection.execute(statement)


async def test_a_migration_that_changes_nothing_waits_for_no_table_that_workers_write(
    site: Site, stack: Stack, database_name: str
) -> None:
    owner = await connect(stack.database_url(database_name), application_name="test")
    try:
        async with site.pool.acquire() as conn, conn.transaction():
            await conn.execute("lock table job_events, jobs, outbox in row exclusive mode")
            await owner.execute("set lock_timeout = '5s'")
            await roles.grant_roles(owner)
        await owner.execute("comment on function by_worker() is null; drop trigger job_changes_of_workers on jobs")
        await roles.grant_roles(owner)
        triggers = "select count(*) from pg_trigger where tgname = 'job_changes_of_workers'"
        assert await owner.fetchval(triggers) == 1
    finally:
        await owner.close()


async def test_a_login_that_may_make_no_roles_says_what_to_do(
    api: OwnConnection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await roles.ensure_roles(api)
    monkeypatch.setattr(roles, "ROLES", ("fusion_missing",))
    assert not await roles.ensure_roles(api)
    assert "create role fusion_missing" in capsys.readouterr().out
