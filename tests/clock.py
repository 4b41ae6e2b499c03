"""A clock for a database that only tests turn: time stands still until a test moves it, and nobody waits.

Every statement of Fusion says `now()` without a schema. The clock's function of that name stands before Postgres' own
on the database's search path, so each session, view, trigger and default takes the time from one row. The schema must
be migrated under that path, because views and defaults are bound when they are made. Production has no such schema.
"""

from datetime import datetime, timedelta

import asyncpg
from fusion_core.db.migrate import migrate
from fusion_core.db.pool import Pool
from fusion_local.stack import create_database

# Tables are made in the first schema of the path; Postgres' own is searched first unless the path names it.
_PATH = "public, clock, pg_catalog"
_SCHEMA = """
create schema clock;
create table clock.hand (at timestamptz not null);
insert into clock.hand values (pg_catalog.now());
create function clock.now() returns timestamptz language sql stable parallel safe as 'select at from clock.hand';
"""


async def create_clocked_template(admin_url: str, url: str, name: str) -> None:
    """A migrated database `name`, reached at `url`, whose now() is the clock's."""
    await create_database(admin_url, name)
    connection = await asyncpg.connect(url)
    await connection.execute(_SCHEMA)
    await connection.execute(f'alter database "{name}" set search_path = {_PATH}')
    await connection.close()
    await migrate(url)


async def create_clocked_database(admin_url: str, name: str, template: str) -> None:
    """A copy of a clocked template; the search path belongs to a database and is not copied with it."""
    await create_database(admin_url, name, template)
    connection = await asyncpg.connect(admin_url)
    await connection.execute(f'alter database "{name}" set search_path = {_PATH}')
    await connection.close()


class Clock:
    """Turns the clock of the database of `pool`, for every session at once and only forwards."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def now(self) -> datetime:
        now: datetime = await self._pool.fetchval("select at from clock.hand")
        return now

    async def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        await self._pool.execute("update clock.hand set at = at + $1", timedelta(seconds=seconds))

    async def reach(self, moment: datetime) -> None:
        """Let time pass until a moment, unless it is over already."""
        await self._pool.execute("update clock.hand set at = greatest(at, $1)", moment)
