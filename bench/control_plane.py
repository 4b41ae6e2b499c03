"""The control plane under load, beside the queues one would otherwise have used: what one Postgres carries.

    .venv/bin/python bench/control_plane.py            # everything: 1,000 workers, 100,000 jobs
    .venv/bin/python bench/control_plane.py --jobs 3000  # 30,000 jobs: a third of the time
    .venv/bin/python bench/control_plane.py --quick    # less of everything, under 3 minutes
    .venv/bin/python bench/control_plane.py --pooler   # the same through PgBouncer in transaction mode

Real Postgres and Valkey, a real orchestrator, and workers that make every call of a worker but train nothing
(`queue_fleet.py`). The parts, each in databases of its own:

- `contenders`: arq, pgqueuer and procrastinate execute no-op jobs (`queue_contenders.py`).
- `notify`: what a notification costs a commit (`queue_notify.py`).
- `growth`: claim to complete in SQL, with 10^3 to 10^6 jobs in the table.
- `doorbell`: the same jobs claimed by rings alone and as a daemon claims; and how long a job waits for an idle worker.
- `life`: whole jobs with events and checkpoints, by `--workers` workers over `--jobs` jobs, at each `--scale`.
- `heartbeats`: as many workers hold a job each and do nothing but renew their leases.

Every part has the same number of processes and connections. `--out` takes the figures as JSON; docs/scale.md works with
docs/figures/control_plane.json, which `queue_report.py` draws.
"""

import argparse
import asyncio
import datetime
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
from fusion_core.db import jobs
from fusion_core.db.pool import connect
from fusion_local.stack import Service, Stack, create_database, free_port
from queue_contenders import CONNECTIONS, FILL, NAMES, Drained
from queue_fleet import Order, Report
from queue_notify import commits_per_s
from queue_pooler import find_pgbouncer, start_pgbouncer
from queue_report import draw, show
from queue_results import QUICK, Plan, Results, Run, drained_per_s
from queue_stack import (
    Child,
    Cost,
    database,
    machine,
    measured,
    orchestrator,
    run_children,
    tree_memory,
    with_statistics,
)
from queue_world import Account, finish_jobs, make_accounts, make_templates, new_job, queue_jobs, sizes
from rich.console import Console

PROCESSES = 2
WORKERS_OF_SQL = 20  # a process: as many as procrastinate's worker runs at once
NOTIFY_SECONDS = 3.0
LISTENERS = 100  # a process
CLAIM_DEADLINE_S = 300.0
SETTLE_S = 3.0  # until every backend has reported what it counted before
console = Console(stderr=True)


class Bench:
    """The parts, over one stack."""

    def __init__(self, stack: Stack, plan: Plan, pooler_port: int | None) -> None:
        self._stack = stack
        self._plan = plan
        self._pooler_port = pooler_port
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        self.results = Results(plan=plan, machine=machine(), date=today)

    async def run(self) -> Results:
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "contenders": self.contenders,
            "notify": self.notify,
            "growth": self.growth,
            "doorbell": self.doorbell,
            "life": self.life,
            "heartbeats": self.heartbeats,
        }
        for name in self._plan.parts:
            began = time.perf_counter()
            await parts[name]()
            console.print(f"{name}: {time.perf_counter() - began:.0f} s")
        return self.results

    # -- the parts ----------------------------------------------------------------------------------------------------

    async def contenders(self) -> None:
        for name in NAMES:
            place = name.replace(", ", "_").replace(" ", "_")
            url = self._stack.redis_url if name == "arq" else self._stack.database_url(place)
            if name != "arq":
                await create_database(self._stack.database_url("postgres"), place)
            await FILL[name](url, self._plan.contender_jobs)
            children = await run_children([["queue_contenders.py", name]] * PROCESSES, {"BENCH_QUEUE_URL": url})
            drained = [msgspec.json.decode(child.output, type=Drained) for child in children]
            executed = sum(one.executed for one in drained)
            if executed != self._plan.contender_jobs:
                raise RuntimeError(f"{name} executed {executed} of {self._plan.contender_jobs} jobs")
            self.results.contenders[name] = drained_per_s(drained)
            console.print(f"{name}: {self.results.contenders[name]:.0f} jobs/s")

    async def notify(self) -> None:
        self.results.commits = await commits_per_s(self._stack, NOTIFY_SECONDS)

    async def growth(self) -> None:
        async with database(self._stack, "growth") as connection:
            await make_templates(connection, await make_accounts(connection))
            for rows in self._plan.rows:
                await finish_jobs(connection, rows)
                await queue_jobs(connection, self._plan.sample, f"growth-{rows}-")
                await self._work("growth", f"{rows:,}", connection, self._sample("look"), rows)

    async def doorbell(self) -> None:
        async with database(self._stack, "doorbell") as connection:
            accounts = await make_accounts(connection)
            await make_templates(connection, accounts)
            with orchestrator(self._stack, self._environment("doorbell", "orchestrator"), free_port()):
                for by in ("ring", "both"):
                    await queue_jobs(connection, self._plan.rings, f"doorbell-{by}-")
                    await self._work("doorbell", by, connection, self._listeners(by, self._plan.rings))
                order = self._listeners("both", self._plan.arrivals)
                arriving = asyncio.create_task(self._arrive(accounts))
                await self._work("doorbell", "arrivals", connection, order)
                await arriving

    async def life(self) -> None:
        for scale in self._plan.scales:
            name, workers, count = f"life_{scale}", self._plan.workers * scale, self._plan.jobs * scale
            async with database(self._stack, name) as connection:
                await make_templates(connection, await make_accounts(connection))
                await queue_jobs(connection, count, "life-")
                order = Order(
                    workers=workers // PROCESSES,
                    connections=CONNECTIONS,
                    by="both",
                    jobs=count // PROCESSES,
                    events=self._plan.events,
                    checkpoints=1,
                    seed=self._plan.seed,
                )
                with orchestrator(self._stack, self._environment(name, "orchestrator"), free_port()):
                    await self._work("life", f"{scale}x", connection, order)
                self.results.sizes, self.results.life_jobs = await sizes(connection), count

    async def heartbeats(self) -> None:
        """Measured from when every worker has its job until they are asked to stop."""
        for scale in self._plan.scales:
            name, workers = f"heartbeats_{scale}", self._plan.workers * scale
            async with database(self._stack, name) as connection:
                await make_templates(connection, await make_accounts(connection))
                await queue_jobs(connection, workers, "held-")
                order = Order(workers=workers // PROCESSES, connections=CONNECTIONS, seed=self._plan.seed)
                holding = asyncio.create_task(self._fleet(name, order))
                await self._all_running(connection, workers)
                await asyncio.sleep(SETTLE_S)
                async with measured(self._stack, connection) as cost:
                    await asyncio.sleep(self._plan.seconds)
                await connection.execute("update jobs set stop_requested_at = now() where state = 'running'")
                self._keep("heartbeats", f"{scale}x", order, await holding, cost)

    # -- one measurement ----------------------------------------------------------------------------------------------

    def _sample(self, by: str) -> Order:
        """Claim and complete at once: what a no-op job is to the contenders."""
        share = self._plan.sample // PROCESSES
        return Order(workers=WORKERS_OF_SQL, connections=CONNECTIONS, by=by, jobs=share, seed=self._plan.seed)

    def _listeners(self, by: str, count: int) -> Order:
        share = count // PROCESSES
        return Order(workers=LISTENERS, connections=CONNECTIONS, by=by, jobs=share, seed=self._plan.seed)

    async def _work(self, part: str, label: str, connection: Any, order: Order, rows: int = 0) -> None:
        """Raises RuntimeError unless every job was completed once."""
        name = await connection.fetchval("select current_database()")
        before = await connection.fetchval("select count(*) from jobs where state = 'completed'")
        async with measured(self._stack, connection) as cost:
            children = await self._fleet(name, order)
        self._keep(part, label, order, children, cost, rows)
        completed = await connection.fetchval("select count(*) from jobs where state = 'completed'") - before
        told = self.results.runs[part][-1].completed
        if not completed == told == order.jobs * PROCESSES:
            raise RuntimeError(f"{part} {label}: {completed} jobs of {order.jobs * PROCESSES} completed, {told} told")

    async def _fleet(self, name: str, order: Order) -> list[Child]:
        orders = [msgspec.structs.replace(order, seed=order.seed + number) for number in range(PROCESSES)]
        argvs = [["queue_fleet.py", msgspec.json.encode(one).decode()] for one in orders]
        return await run_children(argvs, self._environment(name, "worker"))

    def _keep(self, part: str, label: str, order: Order, children: Sequence[Child], cost: Cost, rows: int = 0) -> None:
        reports = [msgspec.json.decode(child.output, type=Report) for child in children]
        workers = order.workers * PROCESSES
        memory = {"workers": max(child.memory for child in children)} | self._memory()
        run = Run.of(label, workers, rows, reports, cost, memory)
        self.results.runs.setdefault(part, []).append(run)
        console.print(f"{part} {label}: {run.jobs_per_s:.0f} jobs/s, {run.heartbeats} heartbeats")

    def _memory(self) -> dict[str, int]:
        found = {}
        for name in ("postgres", "valkey", "orchestrator", "pgbouncer"):
            with suppress(KeyError):  # it does not run in this part
                found[name] = tree_memory(psutil.Process(self._stack.processes.pid(name)))
        return found

    def _environment(self, name: str, service: Service) -> dict[str, str]:
        """Of a process over one database with its service's login, through the pooler where there is one."""
        direct = self._stack.environment(name, service=service)
        if self._pooler_port is None:
            return direct
        pooled = direct["FUSION_DATABASE_URL"].replace(f":{self._stack.postgres_port}/", f":{self._pooler_port}/")
        return direct | {
            "FUSION_DATABASE_URL": pooled,
            "FUSION_LISTEN_URL": direct["FUSION_DATABASE_URL"],
            "FUSION_PREPARED_STATEMENTS": "false",
        }

    async def _all_running(self, connection: Any, workers: int) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(CLAIM_DEADLINE_S):
            while (  # noqa: ASYNC110 - the condition is in Postgres
                await connection.fetchval("select count(*) from jobs where state = 'running'") < workers
            ):
                await asyncio.sleep(0.5)

    async def _arrive(self, accounts: list[Account]) -> None:
        """Jobs submitted at a steady rate, as POST /jobs does."""
        connection = await connect(self._stack.database_url("doorbell"), application_name="fusion-api")
        await asyncio.sleep(5)  # until the workers listen
        began = time.perf_counter()
        for number in range(self._plan.arrivals):
            await asyncio.sleep(max(0.0, began + number / self._plan.arrivals_per_s - time.perf_counter()))
            await jobs.submit_job(connection, new_job(accounts[number % len(accounts)], f"arrival-{number}"))
        await connection.close()


def parsed() -> tuple[Plan, Path | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, help="at scale 1")
    parser.add_argument("--jobs", type=int, help="at scale 1")
    parser.add_argument("--sample", type=int, help="jobs of each measurement but `life`")
    parser.add_argument("--scale", default="1,10")
    parser.add_argument("--rows", help="of the table in `growth`, such as 1000,1000000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pooler", action="store_true")
    parser.add_argument("--parts", default=",".join(Plan().parts))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    wanted: dict[str, Any] = dict(QUICK) if given.quick else {}
    wanted |= {name: value for name in ("workers", "jobs", "sample") if (value := getattr(given, name)) is not None}
    if given.sample is not None:
        wanted |= {"contender_jobs": given.sample, "rings": given.sample, "arrivals": given.sample}
    if given.rows is not None:
        wanted["rows"] = tuple(int(rows) for rows in given.rows.split(","))
    plan = Plan(
        scales=tuple(int(scale) for scale in given.scale.split(",")),
        seed=given.seed,
        pooler=given.pooler,
        parts=tuple(given.parts.split(",")),
        **wanted,
    )
    if unknown := set(plan.parts) - set(Plan().parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return plan, given.out


def main() -> None:
    plan, out = parsed()
    pgbouncer = find_pgbouncer()
    if plan.pooler and pgbouncer is None:
        raise SystemExit("--pooler: there is no pgbouncer on PATH; install the package pgbouncer")
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        try:
            stack.start()
            with_statistics(stack)
            port = start_pgbouncer(stack, pgbouncer) if plan.pooler and pgbouncer else None
            results = asyncio.run(Bench(stack, plan, port).run())
        finally:
            stack.stop()
    if out is not None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
        draw(results, out.with_suffix(".png"))
    show(results)


if __name__ == "__main__":
    main()
