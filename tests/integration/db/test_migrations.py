"""Migrations: forward, all or none, one process at a time."""

import asyncio
import sys
from pathlib import Path
from unittest.mock import AsyncMock
from uuid import uuid4

import asyncpg
import pytest
from fusion_core.db import migrate as migrations
from fusion_core.db.migrate import MigrationChangedError, TableInUseError, migrate
from fusion_local.stack import Stack, create_database


@pytest.fixture
async def empty_url(stack: Stack) -> str:
    name = f"empty_{uuid4().hex[:8]}"
    await create_database(stack.database_url("postgres"), name)
    return stack.database_url(name)


async def test_several_processes_at_once_apply_each_migration_once(empty_url: str) -> None:
    command = [sys.executable, "-m", "fusion_core.db.migrate"]
    environment = {"FUSION_DATABASE_URL": empty_url}
    processes = [
        await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
        for _ in range(4)
    ]
    printed = [(await asyncio.wait_for(process.communicate(), 60))[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum("0001_spine.sql" in line for line in printed) == 1


async def test_an_edited_migration_is_refused(empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "MIGRATIONS", tmp_path)
    monkeypatch.setattr(migrations, "grant_roles", AsyncMock())  # those name the real tables
    (tmp_path / "0001_first.sql").write_text("create table prices (version int primary key, price_table jsonb)")
    assert await migrate(empty_url) == ["0001_first.sql"]
    (tmp_path / "0001_first.sql").write_text("create table prices (version bigint)")
    with pytest.raises(MigrationChangedError, match=r"0001_first\.sql"):
        await migrate(empty_url)


async def test_a_migration_that_fails_leaves_nothing(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "MIGRATIONS", tmp_path)
    (tmp_path / "0001_good.sql").write_text("create table good (id int)")
    (tmp_path / "0002_bad.sql").write_text("create table bad (id nonsense)")
    with pytest.raises(asyncpg.UndefinedObjectError):
        await migrate(empty_url)
    connection = await asyncpg.connect(empty_url)
    assert await connection.fetchval("select to_regclass('good') is null and to_regclass('schema_migrations') is null")
    await connection.close()


async def test_a_table_in_use_ends_a_migration_with_nothing_changed(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "MIGRATIONS", tmp_path)
    monkeypatch.setattr(migrations, "grant_roles", AsyncMock())
    monkeypatch.setattr(migrations, "LOCK_PATIENCE_S", 0.1)
    (tmp_path / "0001_first.sql").write_text("create table prices (version int primary key, price_table jsonb)")
    await migrate(empty_url)
    (tmp_path / "0002_more.sql").write_text("create table more (id int); alter table prices add column more int")
    reader = await asyncpg.connect(empty_url)
    try:
        async with reader.transaction():
            await reader.fetch("select from prices")
            with pytest.raises(TableInUseError, match="nothing was changed"):
                await migrate(empty_url)
        assert await reader.fetchval("select to_regclass('more') is null")
        assert await migrate(empty_url) == ["0002_more.sql"]
    finally:
        await reader.close()


async def test_functions_with_their_owners_rights_look_for_nothing_among_the_callers_objects(database_url: str) -> None:
    """A caller's temporary view of a table's name would otherwise run in its place, with the owner's rights."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "select proname, proconfig from pg_proc where prosecdef and pronamespace = 'public'::regnamespace"
        )
    finally:
        await connection.close()
    assert rows
    paths = {row["proname"]: row["proconfig"] for row in rows}
    assert {name: path for name, path in paths.items() if path != ["search_path=public, pg_temp"]} == {}
