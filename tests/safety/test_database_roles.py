"""What each service's login can do in the database, tried as that login."""
# ruff: noqa: S608 - the statements are the tests' own

import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from fusion_core.db import roles
from fusion_core.db.pool import OwnConnection, connect
from fusion_core.db.worker_statements import SCHEMA, STATEMENTS, WorkerConnection
from fusion_local.stack import Stack

from tests.integration.worker.conftest import Site

ROOT = Path(__file__).parents[2]
DENIED = asyncpg.InsufficientPrivilegeError


@pytest.fixture
async def worker(stack: Stack, database_name: str) -> AsyncIterator[OwnConnection]:
    url = stack.database_url(database_name, "worker")
    connection = await connect(url, application_name="test", connection_class=WorkerConnection)
    yield connection
    await connection.close()


@pytest.fixture
async def api(stack: Stack, database_name: str) -> AsyncIterator[OwnConnection]:
    connection = await connect(stack.database_url(database_name, "api"), application_name="test")
    yield connection
    await connection.close()


async def test_a_worker_has_no_right_to_any_table(worker: OwnConnection) -> None:
    tables = await worker.fetch(
        "select oid::regclass::text as name from pg_class where relnamespace = 'public'::regnamespace "
        "and relkind in ('r', 'p', 'v')"
    )
    assert len(tables) > 20
    rights = "select, insert, update, delete, truncate, references, trigger"
    held = [
        row["name"]
        for row in tables
        if await worker.fetchval("select has_table_privilege($1, $2)", row["name"], rights)
        or await worker.fetchval("select has_any_column_privilege($1, 'select, insert, update')", row["name"])
    ]
    assert held == []


async def test_a_worker_runs_its_own_statements_and_no_other_function_with_its_owners_rights(
    worker: OwnConnection,
) -> None:
    callable_ = await worker.fetch(
        "select p.pronamespace::regnamespace::text || '.' || p.proname as name from pg_proc p"
        " where p.prosecdef and p.prorettype <> 'trigger'::regtype and has_function_privilege(p.oid, 'execute')"
    )
    assert {row["name"] for row in callable_} == {f"{SCHEMA}.{name}" for name in STATEMENTS}


def test_the_functions_are_the_statements_that_workers_make() -> None:
    ours = ("attempts", "audit", "checkpoints", "endings", "failing_workers", "rehearsal_pools")
    sources = [ROOT / f"libs/fusion_core/db/{name}.py" for name in ours]
    sources += (ROOT / "services/worker").rglob("*.py")
    made = {name for path in sources for name in re.findall(r"queries\.(\w+)", path.read_text())}
    of_others = {"fail_idle_job", "insert_job"}  # in those files: an operator's end, the api's job that samples
    assert made - of_others == set(STATEMENTS)


async def test_the_api_and_the_orchestrator_cannot_run_the_workers_functions(api: OwnConnection) -> None:
    with pytest.raises(DENIED):
        await api.execute(f"select * from {SCHEMA}.get_claim(gen_random_uuid(), gen_random_uuid())")


async def test_functions_of_the_release_before_stay_and_older_ones_go(
    site: Site, stack: Stack, database_name: str
) -> None:
    owner = await connect(stack.database_url(database_name), application_name="test")
    try:
        await owner.execute("create schema worker_00000000000a; create schema worker_00000000000b")
        await owner.execute(f"drop schema {SCHEMA} cascade")
        await roles.grant_roles(owner)
        await roles.grant_roles(owner)
        left = await owner.fetch("select nspname from pg_namespace where nspname like 'worker%' order by 1")
        assert [row["nspname"] for row in left] == sorted(["worker_00000000000b", SCHEMA])
    finally:
        await owner.close()


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
