"""What a worker's login may do in the database: run these statements, and nothing else.

Each named query that a worker makes is also a function that runs with its owner's rights ("Writing SECURITY DEFINER
Functions Safely" in PostgreSQL's manual); workers have no right to any table. Which rows a statement may write for whom
is the fence's to say (worker_fence.sql), by triggers. The functions lie in a schema that is named after the
statements' text, so that a worker calls those of its own release, and one of the release before still finds its own.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import asyncpg

from fusion_core.db.pool import Connection, queries

STATEMENTS = (
    # the worker itself
    "register_worker", "declare_pool", "worker_seen",
    # the lease
    "claim_job", "get_claim", "get_held", "renew_lease", "lock_attempt", "lock_job",
    # what the job reads
    "base_of_job", "rehearsal_of_job", "pool_of_job", "dataset_name_of_job", "shards_of_dataset", "uploads_of_dataset",
    # progress
    "append_attempt_events", "commit_checkpoint", "readable_checkpoints", "checkpoint_age", "lose_checkpoint",
    "fall_back_checkpoint",
    # endings
    "complete_training", "complete_job", "fail_job", "cancel_running_job", "stop_running_job", "release_job",
    "requeue_interrupted_job", "append_event", "insert_outbox", "insert_ledger", "insert_shard", "dataset_ready",
    "dataset_failed", "insert_dataset_report", "insert_rehearsal_pool",
    # workers that fail every job, with the log of what the rule did
    "insert_worker_crash", "struck_elsewhere", "count_failures", "drain_by_rule", "crashes_of_worker",
    "take_back_crashes", "insert_audit",
)  # fmt: skip


def _sql(name: str) -> str:
    text: str = getattr(queries, name).sql
    return text


SCHEMA = f"worker_{hashlib.sha256(chr(0).join(map(_sql, STATEMENTS)).encode()).hexdigest()[:12]}"

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection


class WorkerConnection(_Connection):
    """A connection that runs the worker's statements as the functions of their names."""

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        return await super().execute(_call_of(query, len(args)), *args, **options)

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        return await super().fetch(_call_of(query, len(args)), *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        return await super().fetchrow(_call_of(query, len(args)), *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        return await super().fetchval(_call_of(query, len(args)), *args, **options)


_NAMES = {_sql(name): name for name in STATEMENTS}


def _call_of(query: str, parameters: int) -> str:
    name = _NAMES.get(query)
    if name is None:
        return query
    places = ", ".join(f"${number}" for number in range(1, parameters + 1))
    return f"select * from {SCHEMA}.{name}({places})"  # noqa: S608 - names from above


async def write_functions(connection: Connection) -> None:
    """Make this release's functions unless they are there, and drop those of releases before the last one.

    Within the caller's transaction.
    """
    if await connection.fetchval("select to_regnamespace($1) is not null", SCHEMA):
        return
    before = await connection.fetch(
        "select nspname as name from pg_namespace where nspname ~ '^worker_[0-9a-f]{12}$' order by oid desc offset 1"
    )
    for row in before:
        await connection.execute(f"drop schema {row['name']} cascade")
    await connection.execute(f"create schema {SCHEMA}")
    jobs = (await connection.prepare("select * from jobs")).get_attributes()
    for name in STATEMENTS:
        statement = await connection.prepare(_sql(name))
        parameters = ", ".join(parameter.name for parameter in statement.get_parameters())
        await connection.execute(
            f"create function {SCHEMA}.{name}({parameters}) returns {_answer(statement.get_attributes(), jobs)}"
            f" language sql security definer set search_path = public, pg_temp as $statement$ {_sql(name)} $statement$"
        )
    await connection.execute(f"revoke all on all functions in schema {SCHEMA} from public")


async def grant_functions(connection: Connection) -> None:
    """To workers alone."""
    await connection.execute(
        f"grant usage on schema {SCHEMA} to fusion_worker;"
        f" grant execute on all functions in schema {SCHEMA} to fusion_worker"
    )


def _answer(columns: Sequence[Any], jobs: Sequence[Any]) -> str:
    """Whole rows of `jobs` are named as such, so that a function goes on answering them when the table has grown."""
    if not columns:
        return "void"
    if [column.name for column in columns] == [column.name for column in jobs]:
        return "setof jobs"
    return "table ({})".format(", ".join(f'"{column.name}" {column.type.name}' for column in columns))
