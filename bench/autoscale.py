"""What each way of scaling a GPU pool pays, wastes and makes jobs wait for, over a simulated day.

    .venv/bin/python bench/autoscale.py [--hours 24] [--seed 1] [--quick]

Real: PostgreSQL with Fusion's schema; every statement that submits, claims, renews, checkpoints, releases and
completes; the orchestrator's sweep of expired leases and of silent workers (`fusion_orchestrator.reclaim`), and the
query that its GET /demand answers with. All are called in this process: no orchestrator, worker or cluster is started.
Simulated: time (the database's now() is turned, tests/clock.py), workers, which train nothing, and Kubernetes with
KEDA, nodes and spot markets (`autoscale_scalers.py`, `autoscale_nodes.py`; `autoscale_day.py` has what is supposed of
them). The pool's settings are the defaults of the chart's values.yaml.

A GPU-second is used if it is a job's load or one of its steps, each counted once; every other one is wasted. Exits
with 1 unless every job ends completed, no interruption costs more than a checkpoint, what is paid is used or wasted,
and the invariants of tests/integration/db hold.
"""

import argparse
import asyncio
import logging
import math
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import msgspec
import structlog
import yaml
from fusion_core.db.pool import Pool as Connections
from fusion_core.db.pool import close_pool, connect_pool
from fusion_local.stack import Stack
from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.reclaim import mark_gone_workers, reclaim_leases
from fusion_orchestrator.settings import OrchestratorSettings
from queue_world import make_accounts
from rich.progress import track

# The turned clock and the invariants belong to the tests, which are not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from autoscale_day import HOUR_S, Arrival, Nature, Supposed, arrivals, cut_up, offered_gpu_s
from autoscale_fleet import LEASE_TTL_S, Fleet
from autoscale_nodes import Nodes
from autoscale_report import Outcome, Results, draw, show, write_page
from autoscale_scalers import Deployment, Jobs, Pool, Replicas, Scaler
from autoscale_timeline import Timeline

from tests.clock import Clock, create_clocked_database, create_clocked_template
from tests.integration.db.invariants import unsettled, violations

ROOT = Path(__file__).parents[1]
BEAT_S = 60.0  # between sweeps, while every worker that is alive renews right before each
LOOK_S = 10.0  # an idle worker looks into Postgres itself
SWEEP_AFTER_S = LEASE_TTL_S + 2.0  # a lease that ran out is found by the next sweep, every 2 s
STUCK_H = 72.0  # past the day's end
NEAR_S = 1.0  # what rounding may add up to
QUICK = {"hours": 2.0, "from_h": 9.0}


class Day:
    """One mode's day in a database of its own."""

    def __init__(
        self, connections: Connections, supposed: Supposed, jobs: list[Arrival], *, spot: bool, checkpoint_s: float
    ) -> None:
        self._connections = connections
        self._supposed = supposed
        self._jobs = jobs
        self._spot = spot
        self._checkpoint_s = checkpoint_s
        self._metrics = Metrics()
        self._settings = OrchestratorSettings(
            database_url="",
            redis_url="",
            s3_endpoint="",
            s3_access_key="",
            s3_secret_key="",
            lease_ttl_s=LEASE_TTL_S,
            sweep_gap_s=BEAT_S + LEASE_TTL_S,
            worker_gone_s=BEAT_S + LEASE_TTL_S,
        )

    async def run(self, mode: str, pool: Pool) -> Outcome:
        supposed = self._supposed
        async with self._connections.acquire() as conn:
            timeline = Timeline(Clock(self._connections))
            nodes = Nodes(timeline, supposed, Nature(supposed, spot=self._spot))
            fleet = Fleet(conn, timeline, nodes, supposed, checkpoint_s=self._checkpoint_s)
            scaler = _scaler(mode, timeline, fleet, pool)

            async def sweep() -> None:
                await fleet.beat()
                await reclaim_leases(self._connections, self._settings, self._metrics)
                await mark_gone_workers(self._connections, self._settings, self._metrics)
                await fleet.offer()

            async def died() -> None:
                timeline.after(SWEEP_AFTER_S, sweep)

            fleet.tell(scaler.changed, died)
            accounts = await make_accounts(conn, 2)
            for job in self._jobs:
                timeline.after(job.at, partial(fleet.submit, accounts[job.account], job))
            timeline.every(BEAT_S, sweep)
            timeline.every(LOOK_S, fleet.offer)
            scaler.begin()

            def ended() -> bool:
                return timeline.now >= supposed.hours * HOUR_S and fleet.completed == len(self._jobs)

            await timeline.run(ended, (supposed.hours + STUCK_H) * HOUR_S)
            nodes.close()
            found = await violations(conn, fleet.submitted, lease_ttl_s=LEASE_TTL_S)
            found += await unsettled(conn, fleet.submitted)
            waits = await conn.fetch(
                "select extract(epoch from started_at - created_at)::float8 as s from jobs where state = 'completed'"
            )
        faults = [str(one) for one in found]
        return self._outcome(mode, timeline.now, nodes, fleet, [row["s"] for row in waits], faults)

    def _outcome(
        self, mode: str, ended: float, nodes: Nodes, fleet: Fleet, waits: list[float], faults: list[str]
    ) -> Outcome:
        spent, used_s = nodes.spent_s, offered_gpu_s(self._supposed, self._jobs)
        steps_s = sum(job.steps * self._supposed.step_s for job in self._jobs)
        wasted_s: dict[str, float] = {
            "idle": spent["idle"],
            "empty": spent["empty"],
            "starting": spent["starting"],
            "saving": spent["saving"],
        }
        wasted_s["resuming"] = spent["loading"] - self._supposed.load_s * len(self._jobs)
        wasted_s["repeated"] = fleet.repeated_s
        checks = {
            "jobs that have not completed": len(self._jobs) - len(waits),
            "GPU-seconds paid beside those used and wasted": nodes.paid_s - used_s - sum(wasted_s.values()),
            "GPU-seconds trained beside the jobs' steps and those repeated": spent["training"]
            - steps_s
            - fleet.repeated_s,
        }
        faults = faults + [f"{what}: {count:.0f}" for what, count in checks.items() if abs(count) >= NEAR_S]
        if fleet.most_lost_s > self._checkpoint_s + self._supposed.upload_s:
            faults.append(f"{fleet.most_lost_s:.0f} s of steps lost at once, which is more than a checkpoint")
        cuts = statistics.quantiles(waits, n=20, method="inclusive") if len(waits) > 1 else [0.0] * 19
        return Outcome(
            mode=mode,
            spot=self._spot,
            jobs=len(self._jobs),
            completed=len(waits),
            hours=ended / HOUR_S,
            most_nodes=nodes.most,
            paid_h=nodes.paid_s / HOUR_S,
            used_h=used_s / HOUR_S,
            wasted_h={kind: seconds / HOUR_S for kind, seconds in wasted_s.items()},
            wait_p50_s=cuts[9],
            wait_p95_s=cuts[18],
            scaled_in=fleet.counts["scaled_in"],
            noticed=fleet.counts["noticed"],
            unnoticed=fleet.counts["unnoticed"],
            lost_steps=fleet.lost_steps,
            most_lost_s=fleet.most_lost_s,
            faults=faults,
        )


def _scaler(mode: str, timeline: Timeline, fleet: Fleet, pool: Pool) -> Scaler:
    if mode == "deployment":
        return Deployment(timeline, fleet, pool)
    if mode == "scaledjob":
        return Jobs(timeline, fleet, pool)
    return Replicas(timeline, fleet, int(mode.removeprefix("fixed ")))


async def simulate(stack: Stack, supposed: Supposed, pool: Pool, checkpoint_s: float) -> Results:
    jobs = arrivals(supposed)
    offered_s = offered_gpu_s(supposed, jobs)
    mean = min(pool.most, max(1, math.ceil(offered_s / (supposed.hours * HOUR_S))))
    sizes = dict.fromkeys((pool.most, mean))
    days = [
        (mode, spot) for spot in (False, True) for mode in (*(f"fixed {n}" for n in sizes), "deployment", "scaledjob")
    ]
    admin_url = stack.database_url("postgres")
    await create_clocked_template(admin_url, stack.database_url("clocked"), "clocked")
    outcomes = []
    for number, (mode, spot) in enumerate(track(days, "days", transient=True)):
        await create_clocked_database(admin_url, f"day_{number}", "clocked")
        connections = await connect_pool(stack.database_url(f"day_{number}"), application_name="bench")
        try:
            day = Day(connections, supposed, jobs, spot=spot, checkpoint_s=checkpoint_s)
            outcomes.append(await day.run(mode, pool))
        finally:
            await close_pool(connections)
    return Results(
        supposed=msgspec.structs.asdict(supposed),
        pool=msgspec.structs.asdict(pool),
        checkpoint_s=checkpoint_s,
        offered_h=offered_s / HOUR_S,
        outcomes=outcomes,
    )


def main() -> None:
    values = yaml.safe_load((ROOT / "deploy/helm/fusion/values.yaml").read_text())
    defaults = values["workerPoolDefaults"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, help="how long jobs arrive")
    parser.add_argument("--from-h", type=float, help="the hour of the day that it begins at")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spot-mean-h", type=float, help="hours until a spot node is taken away, on average")
    parser.add_argument("--job-minutes", type=float, help="the median job; as many more as they are shorter")
    parser.add_argument("--quick", action="store_true", help="two hours of a morning")
    parser.add_argument("--min", type=int, default=defaults["min"], help="of the scaled modes")
    parser.add_argument("--max", type=int, default=12)
    parser.add_argument("--idle-seconds", type=float, default=defaults["idleSeconds"])
    parser.add_argument("--checkpoint-seconds", type=float, default=defaults["checkpointSeconds"])
    parser.add_argument("--out", type=Path, help="the figures as JSON, and beside them a plot")
    parser.add_argument("--page", type=Path, help="the page whose table is written anew")
    chosen = parser.parse_args()
    said = {name: getattr(chosen, name) for name in ("hours", "from_h", "seed", "spot_mean_h")}
    day = (QUICK if chosen.quick else {}) | {name: value for name, value in said.items() if value is not None}
    supposed = msgspec.convert(day, Supposed)
    if chosen.job_minutes is not None:
        supposed = cut_up(supposed, 60 * chosen.job_minutes)
    polling_s = values["scaling"]["pollingSeconds"]
    pool = Pool(least=chosen.min, most=chosen.max, idle_s=chosen.idle_seconds, polling_s=polling_s)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder), durable=False)
        try:
            stack.start_postgres()
            results = asyncio.run(simulate(stack, supposed, pool, chosen.checkpoint_seconds))
        finally:
            stack.stop()
    show(results)
    if chosen.out is not None:
        chosen.out.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
        draw(results, chosen.out.with_suffix(".png"))
    if chosen.page is not None:
        write_page(results, chosen.page)
    if any(one.faults for one in results.outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
