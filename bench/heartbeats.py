"""What heartbeats cost Postgres: leases renewed and idle workers' reports.

    .venv/bin/python bench/heartbeats.py [--workers 1000] [--rounds 12]

Real Postgres, forced to disk, and the product's own statements over a few connections; between the renewals of one job
lie those of every other, as in a fleet. `HOT` is the share of updates that wrote no index. Time is the CPU of every
Postgres process, the writers of its log included; the goal is for every worker beating each 5 s.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
from fusion_core.db import attempts, jobs
from fusion_core.db.attempts import Attempt
from fusion_core.db.migrate import migrate
from fusion_core.db.pool import Connection, Pool, connect_pool, queries
from fusion_core.growth_plan import plan_growth
from fusion_core.job_spec import SPEC_VERSION, Hyperparams, TrainSpec
from fusion_core.money import DEFAULT_PRICES, estimate_train
from fusion_local.stack import Stack, create_database
from rich.console import Console
from rich.table import Table

HEARTBEAT_S = 5.0
GOAL_CORES = 0.1
CONNECTIONS = 4
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "vocab_size": 128256,
}


async def submit(pool: Pool) -> UUID:
    """One train job as a customer makes it; answers its id."""
    account_id = (await queries.insert_account(pool, name="bench"))["id"]
    base_model_id = uuid4()
    await queries.insert_base_model(
        pool,
        id=base_model_id,
        family="llama",
        name="bench",
        version="fp32",
        params=1,
        precision="fp32",
        config=CONFIG,
        s3_prefix=str(base_model_id),
        manifest={},
        rehearsal=None,
        content_sha256=base_model_id.hex * 2,
    )
    dataset = await queries.insert_dataset(pool, account_id=account_id, name="bench")
    await queries.dataset_ready(pool, dataset_id=dataset["id"], shard_count=1, bytes=1, rows=2, heldout_rows=1)
    plan, hyperparams = plan_growth(CONFIG), Hyperparams()
    new = jobs.NewJob(
        account_id=account_id,
        type="train",
        spec=TrainSpec(hyperparams=hyperparams, growth_plan=plan, base_model_name="bench"),
        pool="bench",
        dataset_id=dataset["id"],
        base_model_id=base_model_id,
        idempotency_key="bench",
        request_sha256=b"\0" * 32,
        price_version=1,
        estimate=estimate_train(DEFAULT_PRICES, plan.params_before, plan.params_after, hyperparams.training_tokens),
    )
    async with pool.acquire() as connection:
        job, _ = await jobs.submit_job(connection, new)
    return job.id


async def run_copies(pool: Pool, job_id: UUID, count: int) -> list[Attempt]:
    """`count` jobs like it, running, each held by an attempt of its own."""
    records = await pool.fetch(
        """insert into jobs (account_id, type, idempotency_key, request_sha256, spec_version, spec, base_model_id,
            dataset_id, price_version, estimate, pool, state, lease_owner, lease_epoch, attempt_id, lease_expires_at,
            started_at)
        select account_id, type, n::text, request_sha256, spec_version, spec, base_model_id, dataset_id, price_version,
            estimate, pool, 'running', uuidv7(), 1, uuidv7(), now(), now()
        from jobs, generate_series(1, $2) n where id = $1
        returning id, attempt_id""",
        job_id,
        count,
    )
    return [Attempt(record["id"], 1, record["attempt_id"]) for record in records]


async def register(pool: Pool, count: int) -> list[UUID]:
    ids = [uuid4() for _ in range(count)]
    for worker_id in ids:
        await queries.register_worker(
            pool,
            id=worker_id,
            name="bench",
            pool="bench",
            spec_version=SPEC_VERSION,
            capabilities=[],
            version="bench",
            gpus=1,
        )
    return ids


def postgres_cpu_s(stack: Stack) -> float:
    """CPU seconds that every Postgres process alive has used."""
    data = str(stack.root / "postgres")
    (root,) = (one for one in psutil.process_iter() if data in _argv(one))
    return sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))


def _argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def measure(
    stack: Stack,
    pool: Pool,
    table: str,
    beats: list[Any],
    beat: Callable[[Connection, Any], Awaitable[Any]],
    rounds: int,
) -> tuple[float, float, float]:
    """Every beat once a round; answers CPU microseconds and WAL bytes a beat, and the share of HOT updates."""

    async def share(mine: list[Any]) -> None:
        async with pool.acquire() as connection:
            for _ in range(rounds):
                for one in mine:
                    await beat(connection, one)
            await connection.execute("select pg_stat_force_next_flush()")

    await pool.execute(f"vacuum analyze {table}")
    await asyncio.sleep(1)
    updates = "select n_tup_upd, n_tup_hot_upd, pg_current_wal_lsn() from pg_stat_user_tables where relname = $1"
    before, cpu_s = await pool.fetchrow(updates, table), postgres_cpu_s(stack)
    await asyncio.gather(*(share(beats[start::CONNECTIONS]) for start in range(CONNECTIONS)))
    cpu_s = postgres_cpu_s(stack) - cpu_s
    after = await pool.fetchrow(updates, table)
    wal = await pool.fetchval("select $1::pg_lsn - $2::pg_lsn", after[2], before[2])
    count = len(beats) * rounds
    return cpu_s / count * 1e6, float(wal) / count, (after[1] - before[1]) / (after[0] - before[0])


async def bench(stack: Stack, workers: int, rounds: int) -> None:
    await create_database(stack.database_url("postgres"), "fusion")
    await migrate(stack.database_url())
    pool = await connect_pool(stack.database_url(), application_name="bench", max_size=CONNECTIONS)
    leases = await run_copies(pool, await submit(pool), workers)
    idle = await register(pool, workers)
    table = Table("heartbeat", "CPU (us)", "WAL (bytes)", "HOT", f"cores of {workers} workers", f"goal {GOAL_CORES}")
    figures = {
        "lease renewed": await measure(stack, pool, "jobs", leases, lambda c, one: attempts.renew(c, one, 20), rounds),
        "idle worker seen": await measure(
            stack,
            pool,
            "workers",
            idle,
            lambda c, one: queries.worker_seen(c, id=one, state="idle", job_id=None),
            rounds,
        ),
    }
    for name, (cpu_us, wal, hot) in figures.items():
        cores = cpu_us / 1e6 * workers / HEARTBEAT_S
        met = "met" if cores < GOAL_CORES else "missed"
        table.add_row(name, f"{cpu_us:.0f}", f"{wal:.0f}", f"{hot:.1%}", f"{cores:.3f}", met)
    await pool.close()
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=12, help="heartbeats of each worker")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        try:
            stack.start_postgres()
            asyncio.run(bench(stack, options.workers, options.rounds))
        finally:
            stack.stop()


if __name__ == "__main__":
    main()
