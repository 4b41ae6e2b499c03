"""The public API under load: requests a second, latencies, a list among a million jobs, the lag of event streams.

    .venv/bin/python bench/api.py [--rows 1000000] [--seconds 8] [--listeners 1000]

One process of the API over real Postgres, Valkey and S3; client, server and stores share the machine. Beside each
figure stands that of a Litestar handler that does nothing, measured just before it in the same way.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import psutil
from fusion_core.db.pool import connect, queries
from fusion_local.processes import base_environment, wait_until
from fusion_local.stack import HOST, Stack, free_port
from http_load import Listeners, Load, load, message, quantile_ms
from pickup import POOL, prepare
from rich.console import Console
from rich.table import Table

BATCH = 50_000
EVENTS, EVENT_EVERY_S = 20, 1.0
COPIED = (
    "account_id, type, request_sha256, spec_version, spec, base_model_id, dataset_id, price_version, estimate, pool,"
    " state, stopped_at, labels"
)


class Server(NamedTuple):
    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


class Servers(NamedTuple):
    api: Server
    bare: Server


class Measured(NamedTuple):
    load: Load
    cpu_ms: float  # of the server's process, a request


class Case(NamedTuple):
    name: str
    api: Measured
    bare: Measured


def start(stack: Stack) -> Servers:
    """The API and the bare handlers, each one process on a port of its own."""
    api, plain = free_port(), free_port()
    own = {"FUSION_PORT": str(api), "FUSION_TRAINING_POOL": POOL, "FUSION_REQUESTS_PER_MINUTE": "1000000000"}
    environment = base_environment() | stack.environment() | {"FUSION_LOG_FORMAT": "json"}
    stack.processes.start("api", [sys.executable, "-m", "fusion_api"], env=environment | own)
    bare = ["uvicorn", "bare_app:app", "--app-dir", str(Path(__file__).parent), "--port", str(plain)]
    stack.processes.start("bare", [sys.executable, "-m", *bare, "--no-access-log"], env=environment)

    def ready() -> bool:
        try:
            urls = (f"http://{HOST}:{api}/ready", f"http://{HOST}:{plain}/bare")
            return all(httpx.get(url, timeout=2).status_code == 200 for url in urls)
        except httpx.TransportError:
            return False

    wait_until(ready, "both servers", stack.processes)
    return Servers(
        *(Server(port, psutil.Process(stack.processes.pid(name))) for port, name in ((api, "api"), (plain, "bare")))
    )


async def fill(connection: asyncpg.Connection, job_id: UUID, rows: int) -> None:
    """Copies of a real job, stopped, of the same account, until there are `rows`."""
    await connection.execute("update jobs set state = 'stopped', stopped_at = now() where id = $1", job_id)
    await connection.execute("set session_replication_role = replica; set synchronous_commit = off")
    count = await connection.fetchval("select count(*) from jobs")
    while count < rows:
        batch = min(BATCH, rows - count)
        await connection.execute(
            f"insert into jobs ({COPIED}, idempotency_key) select {COPIED}, gen_random_uuid()::text"  # noqa: S608 - columns from above
            " from jobs, generate_series(1, $2) where id = $1",
            job_id,
            batch,
            timeout=300,
        )
        count += batch
    await connection.execute("set session_replication_role = origin")
    await connection.execute("vacuum analyze jobs", timeout=300)


async def beside_bare(name: str, servers: Servers, make: Any, seconds: float, bare: bytes) -> Case:
    beside = await measured(servers.bare, lambda: bare, seconds / 2)
    return Case(name, await measured(servers.api, make, seconds), beside)


async def measured(server: Server, make: Any, seconds: float) -> Measured:
    before = server.cpu_s()
    found = await load(server.port, make, seconds)
    return Measured(found, 1000 * (server.cpu_s() - before) / len(found.times))


async def stream_lags(
    servers: Servers, headers: dict[str, str], job_ids: list[UUID], each: int, url: str
) -> list[float]:
    """Seconds from before an event's transaction to its arrival, of every event at every listener."""
    listeners = Listeners(servers.api.port, headers)
    connection = await connect(url, application_name="bench")
    for job_id in job_ids:
        for at in range(0, each, 50):
            await asyncio.gather(*(listeners.open(f"/api/jobs/{job_id}/events") for _ in range(min(50, each - at))))
    sent: dict[int, float] = {}
    for number in range(EVENTS):
        job_id = job_ids[number % len(job_ids)]
        sent[number] = time.perf_counter()
        await queries.append_event(connection, job_id=job_id, type="notice", data={"n": number})
        await asyncio.sleep(EVENT_EVERY_S)
    async with asyncio.timeout(30):
        while len(listeners.arrivals) < EVENTS * each:  # noqa: ASYNC110 - filled by the listeners' tasks
            await asyncio.sleep(0.05)
    await listeners.close()
    await connection.close()
    return [arrived - sent[number] for number, arrived in listeners.arrivals]


async def measure(stack: Stack, rows: int, seconds: float, count: int) -> tuple[list[Case], dict[str, list[float]]]:
    console = Console(stderr=True)
    secret, base_model_id, dataset_id = await prepare(stack)
    servers = start(stack)
    headers = {"Authorization": f"Bearer {secret}"}
    body = {"type": "train", "base_model_id": str(base_model_id), "dataset_id": str(dataset_id)}

    def new_job() -> bytes:
        return message("POST", "/api/jobs", headers, msgspec.json.encode(body | {"idempotency_key": uuid4().hex}))

    connection = await connect(stack.database_url(), application_name="bench")
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{servers.api.port}", headers=headers, timeout=30) as client:
        made = [await client.post("/api/jobs", json=body | {"idempotency_key": uuid4().hex}) for _ in range(102)]
    ids = [UUID(answer.json()["id"]) for answer in made]
    bare_get = message("GET", "/bare", headers)
    bare_post = message("POST", "/bare", headers, msgspec.json.encode(body))
    look, page = message("GET", f"/api/jobs/{ids[0]}", headers), message("GET", "/api/jobs?limit=50", headers)
    deep = message("GET", f"/api/jobs?limit=50&after={ids[-1]}", headers)
    cases = []
    await fill(connection, ids[0], 1000)
    cases.append(await beside_bare("GET /jobs, 50 of 1,000", servers, lambda: page, seconds, bare_get))
    began = time.perf_counter()
    await fill(connection, ids[0], rows)
    console.print(f"{rows:,} jobs in {time.perf_counter() - began:.0f} s")
    cases.append(await beside_bare(f"GET /jobs, 50 of {rows:,}", servers, lambda: page, seconds, bare_get))
    cases.append(await beside_bare(f"GET /jobs, the last page of {rows:,}", servers, lambda: deep, seconds, bare_get))
    cases.append(await beside_bare("GET /jobs/{id}", servers, lambda: look, seconds, bare_get))
    cases.append(await beside_bare("POST /jobs", servers, new_job, seconds, bare_post))
    url = stack.database_url()
    lags = {
        f"{count:,} listeners of one job": await stream_lags(servers, headers, ids[1:2], count, url),
        f"{count:,} listeners of 100 jobs": await stream_lags(servers, headers, ids[2:102], count // 100, url),
    }
    await connection.close()
    return cases, lags


def show(cases: list[Case], lags: dict[str, list[float]]) -> None:
    names = ("", "requests/s", "median ms", "p95 ms", "p99 ms", "bare requests/s", "share", "CPU ms", "bare CPU ms")
    table = Table(*names)
    for name, api, bare in cases:
        one, other = api.load, bare.load
        figures = [f"{one.per_s:.0f}", *(f"{one.ms(percent):.1f}" for percent in (50, 95, 99)), f"{other.per_s:.0f}"]
        table.add_row(name, *figures, f"{one.per_s / other.per_s:.2f}", f"{api.cpu_ms:.2f}", f"{bare.cpu_ms:.2f}")
    streams = Table("from event to client", "median ms", "p95 ms", "p99 ms")
    for name, seconds in lags.items():
        streams.add_row(name, *(f"{quantile_ms(seconds, percent):.0f}" for percent in (50, 95, 99)))
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    Console(width=140).print(table, streams, f"load of the machine: {busy:.1f} times its cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--listeners", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        try:
            stack.start()
            cases, lags = asyncio.run(measure(stack, options.rows, options.seconds, options.listeners))
        finally:
            stack.stop()
    show(cases, lags)


if __name__ == "__main__":
    main()
