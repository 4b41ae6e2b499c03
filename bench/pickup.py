"""From POST /jobs to `running`, with an idle worker: how long a customer's job waits for nothing.

    .venv/bin/python bench/pickup.py [--jobs 200]

Real Postgres, Valkey, S3, api, orchestrator and worker; only the trainer is a stub that ends at once. Time runs from
the client's first byte to the transaction that claims the job; the next job is sent once the worker is idle again.
"""

import argparse
import asyncio
import random
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import httpx
from fusion_core.db.migrate import migrate
from fusion_core.db.pool import connect, queries
from fusion_core.storage import Storage
from fusion_local.processes import base_environment, wait_until
from fusion_local.stack import HOST, Stack, free_port
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # the rows belong to the tests, which are not installed

from tests.inputs import add_base_model, add_dataset, add_key

STUB = Path(__file__).parents[1] / "tests" / "integration" / "worker" / "stub_trainer.py"
GOAL_MS = 500.0
POOL = "bench"


async def prepare(stack: Stack) -> tuple[str, UUID, UUID]:
    """The secret of a new account's key, a tiny base model and a dataset without shards, so that staging is short."""
    await migrate(stack.database_url())
    connection = await connect(stack.database_url(), application_name="bench")
    account = await queries.insert_account(connection, name="bench")
    secret = await add_key(connection, account["id"])
    async with Storage(stack.settings()) as storage:
        base_model_id = await add_base_model(connection, storage)
    dataset_id = await add_dataset(connection, account["id"])
    await connection.close()
    return secret, base_model_id, dataset_id


def start_services(stack: Stack, root: Path) -> str:
    """One api, one orchestrator, one worker; answers the api's address."""
    port = free_port()
    url = f"http://{HOST}:{port}"
    common = base_environment() | stack.environment() | {"FUSION_LOG_FORMAT": "json"}
    own = {
        "fusion_api": {"FUSION_PORT": str(port), "FUSION_TRAINING_POOL": POOL},
        "fusion_orchestrator": {"FUSION_PORT": str(free_port())},
        "fusion_worker": {
            "FUSION_WORK_DIR": str(root / "worker"),
            "FUSION_POOL": POOL,
            "FUSION_DEVICE": "cpu",
            "FUSION_TRAINER_COMMAND": shlex.join([sys.executable, str(STUB)]),
        },
    }
    for module, settings in own.items():
        stack.processes.start(module, [sys.executable, "-m", module], env=common | settings)

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(ready, "the api", stack.processes)
    return url


async def worker_is_idle(connection: asyncpg.Connection) -> None:
    """Wait until no job is open and the worker says that it is idle. Raises TimeoutError."""
    async with asyncio.timeout(60):
        while not await connection.fetchval(  # noqa: ASYNC110 - the condition is in another process
            "select exists (select from workers where state = 'idle')"
            " and not exists (select from jobs where finished_at is null)"
        ):
            await asyncio.sleep(0.02)
    await asyncio.sleep(random.uniform(0, 0.2))  # so that no timer of ours keeps step with one of the services


async def pick_up(client: httpx.AsyncClient, connection: asyncpg.Connection, body: dict[str, object]) -> float:
    """Milliseconds from POST to the claim of one job; returns once the worker is idle again."""
    sent = time.time()
    answer = await client.post("/api/jobs", json=body | {"idempotency_key": uuid4().hex})
    answer.raise_for_status()
    job_id = UUID(answer.json()["id"])
    await worker_is_idle(connection)
    job = await connection.fetchrow(
        "select state, (select min(created_at) from job_events where job_id = id and type = 'claimed') as claimed_at"
        " from jobs where id = $1",
        job_id,
    )
    if job is None or job["state"] != "completed":
        raise RuntimeError(f"job {job_id} did not complete: {job}")
    return float((job["claimed_at"].timestamp() - sent) * 1000)


async def measure(stack: Stack, root: Path, count: int) -> list[float]:
    """Milliseconds of `count` jobs, one after another; a first one that warms caches up is left out."""
    secret, base_model_id, dataset_id = await prepare(stack)
    url = start_services(stack, root)
    hyperparams = {"train_steps": 4, "output_name": "normal"}
    ids = {"base_model_id": str(base_model_id), "dataset_id": str(dataset_id)}
    body: dict[str, object] = {"type": "train", "hyperparams": hyperparams, **ids}
    connection = await connect(stack.database_url(), application_name="bench")
    headers = {"Authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
        await worker_is_idle(connection)
        await pick_up(client, connection, body)
        times = [await pick_up(client, connection, body) for _ in track(range(count), "jobs")]
    await connection.close()
    return times


def show(times: list[float]) -> None:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    table = Table("POST /api/jobs to running", "ms", "share of the goal")
    for name, value in (("median", cuts[49]), ("99th percentile", cuts[98]), ("slowest", max(times))):
        table.add_row(name, f"{value:.0f}", f"{value / GOAL_MS:.2f}")
    Console().print(table, f"{len(times)} jobs; goal: 99th percentile below {GOAL_MS:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    count: int = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        try:
            stack.start()
            times = asyncio.run(measure(stack, Path(folder), count))
        finally:
            stack.stop()
    show(times)


if __name__ == "__main__":
    main()
