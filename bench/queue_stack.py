"""What the measurement runs on and reads its figures from: the embedded stack, Postgres' own counters, processes."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psutil
from fusion_core.db.migrate import migrate
from fusion_core.db.pool import connect
from fusion_local.processes import base_environment
from fusion_local.stack import Stack, create_database

HERE = Path(__file__).parent
CHILD_DEADLINE_S = 3600.0
_STATEMENTS = """
select left(regexp_replace(query, '\\s+', ' ', 'g'), 100) as query, calls, total_exec_time as ms, wal_bytes::bigint
from pg_stat_statements where dbid = (select oid from pg_database where datname = current_database())
order by total_exec_time desc limit 12
"""


class Statement(msgspec.Struct, frozen=True):
    """One statement's share, from pg_stat_statements."""

    query: str
    calls: int
    ms: float
    wal_bytes: int


class Cost(msgspec.Struct, kw_only=True):
    """What a piece of work took of Postgres: wall and CPU seconds of all its processes, WAL, updates of `jobs`."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    wal_bytes: int = 0
    commits: int = 0
    updates: int = 0
    hot_updates: int = 0
    connections: int = 0
    statements: list[Statement] = []


def with_statistics(stack: Stack) -> None:
    """Restart Postgres with pg_stat_statements, which the embedded build brings along."""

    async def ask() -> None:
        connection = await asyncpg.connect(stack.database_url("postgres"))
        await connection.execute("alter system set shared_preload_libraries = 'pg_stat_statements'")
        await connection.close()

    asyncio.run(ask())
    stack.processes.stop("postgres")
    stack.start_postgres()


@asynccontextmanager
async def database(stack: Stack, name: str, *, migrated: bool = True) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database of its own."""
    await create_database(stack.database_url("postgres"), name)
    if migrated:
        await migrate(stack.database_url(name))
    connection = await connect(stack.database_url(name), application_name="bench")
    await connection.execute("create extension if not exists pg_stat_statements")
    try:
        yield connection
    finally:
        await connection.close()


def postgres(stack: Stack) -> psutil.Process:
    return psutil.Process(stack.processes.pid("postgres"))


def tree_cpu_s(process: psutil.Process) -> float:
    """User and system time of a process and its children, those that have ended included."""
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            of_child = child.cpu_times()
            total += of_child.user + of_child.system
    return float(total)


def tree_memory(process: psutil.Process) -> int:
    """Bytes, shared pages counted once (proportional set size)."""
    total = 0
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += member.memory_full_info().pss
    return total


@asynccontextmanager
async def measured(stack: Stack, connection: asyncpg.Connection) -> AsyncIterator[Cost]:
    """What the block costs this database's Postgres; the most connections at once are looked for every half second."""
    cost = Cost()
    await connection.execute("checkpoint")
    await connection.execute("select pg_stat_reset(), pg_stat_statements_reset()")
    wal = await connection.fetchval("select pg_current_wal_lsn()")
    watcher = asyncio.create_task(_watch_connections(connection, cost))
    cpu, began = tree_cpu_s(postgres(stack)), time.perf_counter()
    try:
        yield cost
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    cost.wall_s, cost.cpu_s = time.perf_counter() - began, tree_cpu_s(postgres(stack)) - cpu
    cost.wal_bytes = int(await connection.fetchval("select pg_current_wal_lsn() - $1::pg_lsn", wal))
    await asyncio.sleep(1.1)  # backends report their counts once a second at most
    database = await connection.fetchrow("select xact_commit from pg_stat_database where datname = current_database()")
    jobs = await connection.fetchrow("select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'jobs'")
    cost.commits = database["xact_commit"] if database else 0
    if jobs is not None:
        cost.updates, cost.hot_updates = jobs["n_tup_upd"], jobs["n_tup_hot_upd"]
    cost.statements = [
        Statement(row["query"], row["calls"], row["ms"], row["wal_bytes"])
        for row in await connection.fetch(_STATEMENTS)
    ]


async def _watch_connections(connection: asyncpg.Connection, cost: Cost) -> None:
    while True:
        count = await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
        cost.connections = max(cost.connections, count)
        await asyncio.sleep(0.5)


class Child(msgspec.Struct, frozen=True):
    """What a child process printed, and the most memory it had, in bytes."""

    output: bytes
    memory: int


async def run_children(argvs: Sequence[Sequence[str]], environment: Mapping[str, str]) -> list[Child]:
    """Python programs of this folder, side by side, to their ends. Raises RuntimeError with what one complained of."""
    return list(await asyncio.gather(*(_run_child(argv, environment) for argv in argvs)))


async def _run_child(argv: Sequence[str], environment: Mapping[str, str]) -> Child:
    program, *arguments = argv
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / program),
        *arguments,
        env=base_environment() | dict(environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    memory = [0]
    watcher = asyncio.create_task(_watch_memory(child.pid, memory))
    try:
        async with asyncio.timeout(CHILD_DEADLINE_S):
            output, errors = await child.communicate()
    finally:
        watcher.cancel()
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    if child.returncode != 0:
        raise RuntimeError(f"{program} ended with {child.returncode}: {errors.decode(errors='replace')[-3000:]}")
    return Child(output, memory[0])


async def _watch_memory(pid: int, most: list[int]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while True:
            most[0] = max(most[0], process.memory_info().rss)
            await asyncio.sleep(0.5)


@contextlib.contextmanager
def orchestrator(stack: Stack, environment: Mapping[str, str], port: int) -> Iterator[psutil.Process]:
    """A replica over one database."""
    own = {"FUSION_PORT": str(port), "FUSION_LOG_FORMAT": "json"}
    stack.processes.start(
        "orchestrator",
        [sys.executable, "-m", "fusion_orchestrator"],
        env=base_environment() | dict(environment) | own,
    )
    try:
        yield psutil.Process(stack.processes.pid("orchestrator"))
    finally:
        stack.processes.stop("orchestrator")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {"cores": os.cpu_count(), "load_before": os.getloadavg()[0], "memory": psutil.virtual_memory().total}
