"""The services' roles in the database: each may do what its statements do (roles.sql).

A worker does so by functions alone (worker_statements.py), on rows of its own jobs (worker_fence.sql).
"""

import hashlib
from pathlib import Path

import asyncpg
import structlog

from fusion_core.db.pool import Connection
from fusion_core.db.worker_statements import grant_functions, write_functions

ROLES = ("fusion_api", "fusion_orchestrator", "fusion_worker")
_GRANTS = Path(__file__).with_name("roles.sql")
_FENCE = Path(__file__).with_name("worker_fence.sql")

log = structlog.get_logger()


async def ensure_roles(connection: Connection) -> bool:
    """Make the roles that are missing; they belong to the whole server. False: this login may not make any."""
    for role in ROLES:
        if await connection.fetchval("select to_regrole($1) is not null", role):
            continue
        try:
            async with connection.transaction():
                await connection.execute(f"create role {role} nologin")
        except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):  # another migration was quicker
            continue
        except asyncpg.InsufficientPrivilegeError:
            hint = f"have a superuser run: create role {'; create role '.join(ROLES)}; then migrate again"
            log.warning("roles_missing", hint=hint)
            return False
    return True


async def grant_roles(connection: Connection) -> None:
    """Write anew what each role may do; within the caller's transaction.

    The fence only where it is another one: its triggers lock every table that workers write.
    """
    await write_functions(connection)
    if not await ensure_roles(connection):
        return
    await connection.execute(_GRANTS.read_text())
    await grant_functions(connection)
    fence = _FENCE.read_text()
    mark = hashlib.sha256(fence.encode()).hexdigest()
    if await connection.fetchval("select obj_description(to_regproc('by_worker'), 'pg_proc')") != mark:
        await connection.execute(f"{fence}\ncomment on function by_worker() is '{mark}';")
