"""Forward migrations: `migrations/NNNN_name.sql`, applied in order, all or none, by one process at a time.

python -m fusion_core.db.migrate        # reads FUSION_DATABASE_URL or FUSION_DATABASE_URL_FILE
"""

import asyncio
import hashlib
import sys
from pathlib import Path

import asyncpg
import structlog

from fusion_core.db.audit import By, record
from fusion_core.db.pool import connect, queries
from fusion_core.db.roles import grant_roles
from fusion_core.money import DEFAULT_PRICES
from fusion_core.settings import SettingsError, read_setting

MIGRATIONS = Path(__file__).parent / "migrations"
STATEMENT_TIMEOUT_S = 3600.0  # an index of a large table takes minutes
LOCK_PATIENCE_S = 20.0  # for a table: whoever waits for it has everybody else wait behind
_LOCK = 0x667573696F6E  # "fusion"


class MigrationChangedError(RuntimeError):
    """A migration that has been applied was edited afterwards: write a new one instead."""


class TableInUseError(RuntimeError):
    """Somebody's transaction has held a table that a migration changes for LOCK_PATIENCE_S."""


async def migrate(url: str, by: By | None = None) -> list[str]:
    """Bring the schema and the services' rights up to date; answers the names applied now.

    An operator (`by`) gets a line in the audit log.

    The advisory lock lives as long as the transaction, so a pooler in front of Postgres does no harm.
    Raises MigrationChangedError, TableInUseError.
    """
    connection = await connect(url, application_name="fusion-migrate", statement_timeout_s=STATEMENT_TIMEOUT_S)
    applied_now: list[str] = []
    try:
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(f"set local lock_timeout = {LOCK_PATIENCE_S * 1000:.0f}")
            await connection.execute(
                "create table if not exists schema_migrations "
                "(name text primary key, sha256 text not null, applied_at timestamptz not null default now())"
            )
            applied = {row["name"]: row["sha256"] for row in await connection.fetch("select * from schema_migrations")}
            for path in sorted(MIGRATIONS.glob("*.sql")):
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                if path.name not in applied:
                    await connection.execute(path.read_text())
                    await connection.execute(
                        "insert into schema_migrations (name, sha256) values ($1, $2)", path.name, sha256
                    )
                    applied_now.append(path.name)
                elif applied[path.name] != sha256:
                    raise MigrationChangedError(f"{path.name} was changed after it was applied; add a new migration")
            await queries.insert_prices(connection, version=1, price_table=DEFAULT_PRICES)
            await grant_roles(connection)
            if by is not None and applied_now:
                before, after = ({"newest": max(names, default=None)} for names in (applied, applied_now))
                await record(connection, by, "migrate", "database", "schema", before, after)
    except asyncpg.LockNotAvailableError as error:
        raise TableInUseError(
            f"a transaction has held a table for {LOCK_PATIENCE_S:.0f} s; nothing was changed. Find it in"
            " pg_stat_activity (the oldest xact_start), end it or wait, and migrate again"
        ) from error
    finally:
        await connection.close()
    return applied_now


def main() -> None:
    try:
        url = read_setting("FUSION_DATABASE_URL")
    except SettingsError as error:
        sys.exit(str(error))
    if url is None:
        sys.exit("FUSION_DATABASE_URL is not set: postgresql://user:password@host:port/database")
    structlog.get_logger().info("migrated", applied=asyncio.run(migrate(url)))


if __name__ == "__main__":
    main()
