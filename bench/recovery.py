"""How long a job stands still when its worker dies or is drained: to claimable, to claimed, to the next step elsewhere.

    .venv/bin/python bench/recovery.py [--rounds 3]

Real processes on this machine and a trainer that only counts, so that what is measured is the platform: kill -9 of a
worker's whole tree with the default lease and with a tuned one, and SIGTERM. Times are those of the database's clock,
from the signal on. Exits with 1 where a goal is missed.
"""

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from fusion_client import Fusion
from fusion_core.db.pool import OwnConnection, connect
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # the harness belongs to the tests, which are not installed

from tests.faults.cluster import Cluster

# Heartbeats older than 30 s make a job of PgQueuer's, or a worker of Procrastinate's, count as dead by default.
PEERS_S = 30.0
DEFAULT: dict[str, object] = {"log_format": "json"}
TUNED: dict[str, object] = {"lease_ttl_s": 4, "heartbeat_s": 1, "sweep_s": 0.5, "sweep_gap_s": 3, "log_format": "json"}
STEP_S, CHECKPOINT_EVERY, STEPS = 0.1, 10, 100_000
DEADLINE_S = 90.0
# Of the first event after the signal: a checkpoint (a drain alone), given back or taken back, claimed, a step.
MOMENTS = """
select
    (select min(created_at) from job_events where job_id = $1 and seq > $2 and type = 'interrupted') as claimable,
    (select min(created_at) from job_events where job_id = $1 and seq > $2 and type = 'claimed') as claimed,
    (select min(e.created_at) from job_events e, job_events c
        where e.job_id = $1 and c.job_id = $1 and e.seq > c.seq and c.seq > $2 and c.type = 'claimed'
            and e.type = 'metrics') as step
"""


class Recovery(NamedTuple):
    """Seconds from the signal on, and the retries that it cost."""

    claimable: float
    claimed: float
    step: float
    retries: int


class Case(NamedTuple):
    """What is done to a worker, with which settings, and within how many seconds the job must be claimable."""

    name: str
    settings: Mapping[str, object]
    drain: bool
    goal_s: float


CASES = (
    Case("kill -9, default lease (20 s)", DEFAULT, False, 22.0),
    Case("kill -9, tuned lease (4 s)", TUNED, False, 5.0),
    Case("SIGTERM, default lease", DEFAULT, True, STEP_S * CHECKPOINT_EVERY),
)


async def owner(connection: OwnConnection, job_id: UUID) -> str:
    """The name of the worker that trains the job, once it has committed a checkpoint in this attempt."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            name: str | None = await connection.fetchval(
                "select w.name from jobs j join workers w on w.id = j.lease_owner join checkpoints c on c.job_id = j.id"
                " where j.id = $1 and j.state = 'running' and c.attempt_id = j.attempt_id limit 1",
                job_id,
            )
            if name is not None:
                return name.rpartition("-")[0]  # the cluster's, less what tells its starts apart
            await asyncio.sleep(0.1)


async def strike(cluster: Cluster, connection: OwnConnection, job_id: UUID, case: Case, pause_s: float) -> Recovery:
    """One round: the signal, and what the events say until the next step."""
    worker = await owner(connection, job_id)
    await asyncio.sleep(pause_s)  # anywhere between two heartbeats
    before = await connection.fetchrow("select event_seq, retries from jobs where id = $1", job_id)
    assert before is not None
    struck = time.time()
    if case.drain:
        os.kill(cluster.processes.pid(worker), signal.SIGTERM)
    else:
        cluster.kill(worker)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            row = await connection.fetchrow(MOMENTS, job_id, before["event_seq"])
            if row is not None and row["step"] is not None:
                break
            await asyncio.sleep(0.05)
    retries = await connection.fetchval("select retries from jobs where id = $1", job_id) - before["retries"]
    if case.drain:
        cluster.processes.stop(worker)
    cluster.start(worker)
    moments = [row[name].timestamp() - struck for name in ("claimable", "claimed", "step")]
    return Recovery(*moments, retries)


async def measure(cluster: Cluster, case: Case, rounds: int) -> list[Recovery]:
    account = cluster.accounts[0]
    hyperparams = {"train_steps": STEPS, "output_name": "recovery"}
    with Fusion(cluster.url(cluster.apis[0]), account.secret) as client:
        ids = {"base_model_id": str(account.base_model_id), "dataset_id": str(account.dataset_id)}
        job = client.create_job(**ids, hyperparams=hyperparams)
    connection = await connect(cluster.stack.database_url(), application_name="recovery")
    heartbeat_s = float(str(case.settings.get("heartbeat_s", 5.0)))
    try:
        return [
            await strike(cluster, connection, UUID(job.id), case, heartbeat_s * number / rounds)
            for number in track(range(rounds), case.name)
        ]
    finally:
        await connection.close()


def show(measured: list[tuple[Case, list[Recovery]]]) -> bool:
    """Print the table; answers whether every goal was met."""
    columns = ("", "claimable, s", "slowest", "goal", "claimed, s", "next step, s", "retries", "beside peers' 30 s")
    table, met = Table(*columns), True
    for case, rounds in measured:
        medians = [
            statistics.median(getattr(each, name) for each in rounds) for name in ("claimable", "claimed", "step")
        ]
        slowest = max(each.claimable for each in rounds)
        retries = max(each.retries for each in rounds)
        cells = [f"{medians[0]:.2f}", f"{slowest:.2f}", f"{case.goal_s:g}", f"{medians[1]:.2f}", f"{medians[2]:.2f}"]
        table.add_row(case.name, *cells, str(retries), f"{medians[0] / PEERS_S:.2f}")
        met = met and slowest <= case.goal_s and retries == (0 if case.drain else 1)
    Console(width=120).print(table, f"medians of {len(rounds)} rounds; peers: PgQueuer and Procrastinate as they come")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    measured = []
    for case in CASES:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            Cluster(
                Path(folder),
                workers=2,
                apis=1,
                settings=case.settings,
                step_s=STEP_S,
                checkpoint_every=CHECKPOINT_EVERY,
            ) as cluster,
        ):
            measured.append((case, asyncio.run(measure(cluster, case, rounds))))
    sys.exit(not show(measured))


if __name__ == "__main__":
    main()
