"""arq, pgqueuer and procrastinate executing no-op jobs: what one would otherwise have queued with.

    python bench/queue_contenders.py NAME     # one worker process; answers a Drained as JSON on stdout

Each runs as its own documentation recommends for throughput, with as many connections to Postgres as a process of
simulated workers has, on uvloop as they do:

- pgqueuer as in its `tools/benchmark.py`, strategy `drain`: QueueManagers over one asyncpg connection each, with a
  batch of 25 from its page on performance tuning, and the storage parameters of `pgq autovac`. Durable, its default.
  A batch hands 25 jobs to one process in one transaction, and takes their ends back in another; whoever gives a
  machine to each job takes one at a time, so it is measured with a batch of one as well.
- procrastinate with one worker of `concurrency` 20 over a pool of connections and `delete_jobs="always"`.
- arq with `max_jobs=100`, `poll_delay=0.01` and JSON instead of pickle, results not kept.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import asyncpg
import msgspec
import procrastinate
import uvloop
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.models import Job
from pgqueuer.types import QueueExecutionMode

CONNECTIONS = 5
BATCHES = {"pgqueuer": 25, "pgqueuer, one at a time": 1}
ENQUEUED_AT_ONCE = 1000
NAMES = ("arq", *BATCHES, "procrastinate")
_ARQ_QUEUE = "bench:noop"


class Drained(msgspec.Struct):
    """What one process executed, and when the first and the last of it, in Unix seconds."""

    began: float = 0.0
    ended: float = 0.0
    executed: int = 0

    def tick(self) -> None:
        self.ended = time.time()
        self.began = self.began or self.ended
        self.executed += 1


def _batches(jobs: int) -> list[int]:
    return [min(ENQUEUED_AT_ONCE, jobs - first) for first in range(0, jobs, ENQUEUED_AT_ONCE)]


# -- pgqueuer --------------------------------------------------------------------------------------------------------


async def fill_pgqueuer(url: str, jobs: int) -> None:
    connection = await asyncpg.connect(url)
    queue = Queries(AsyncpgDriver(connection))
    await queue.install()
    await queue.optimize_autovacuum()
    for count in _batches(jobs):
        await queue.enqueue(["noop"] * count, [None] * count, [0] * count)
    await connection.close()


async def drain_pgqueuer(url: str, drained: Drained, batch: int) -> None:
    managers = []
    for _ in range(CONNECTIONS):
        manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))

        @manager.entrypoint("noop")
        async def noop(_job: Job) -> None:
            drained.tick()

        managers.append(manager.run(batch_size=batch, mode=QueueExecutionMode.drain))
    await asyncio.gather(*managers)


# -- procrastinate ---------------------------------------------------------------------------------------------------


def _procrastinate(url: str, drained: Drained) -> tuple[procrastinate.App, Any]:
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=CONNECTIONS, max_size=CONNECTIONS)
    app = procrastinate.App(connector=connector)

    async def noop() -> None:
        drained.tick()

    return app, app.task(name="noop")(noop)


async def fill_procrastinate(url: str, jobs: int) -> None:
    app, task = _procrastinate(url, Drained())
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for count in _batches(jobs):
            await task.batch_defer_async(*({} for _ in range(count)))


async def drain_procrastinate(url: str, drained: Drained) -> None:
    app, _ = _procrastinate(url, drained)
    async with app.open_async():
        await app.run_worker_async(
            wait=False, concurrency=20, delete_jobs="always", install_signal_handlers=False, listen_notify=False
        )


# -- arq -------------------------------------------------------------------------------------------------------------


async def fill_arq(url: str, jobs: int) -> None:
    redis: ArqRedis = await create_pool(RedisSettings.from_dsn(url), job_serializer=msgspec.json.encode)
    for count in _batches(jobs):
        await asyncio.gather(*(redis.enqueue_job("noop", _queue_name=_ARQ_QUEUE) for _ in range(count)))
    await redis.aclose()


async def drain_arq(url: str, drained: Drained) -> None:
    async def noop(_ctx: dict[Any, Any]) -> None:
        drained.tick()

    worker = Worker(
        functions=[func(cast(WorkerCoroutine, noop), name="noop", keep_result=0)],
        queue_name=_ARQ_QUEUE,
        redis_settings=RedisSettings.from_dsn(url),
        burst=True,
        max_jobs=100,
        poll_delay=0.01,
        keep_result=0,
        handle_signals=False,
        job_serializer=msgspec.json.encode,
        job_deserializer=msgspec.json.decode,
    )
    await worker.main()


FILL: dict[str, Callable[[str, int], Awaitable[None]]] = {
    "arq": fill_arq,
    **dict.fromkeys(BATCHES, fill_pgqueuer),
    "procrastinate": fill_procrastinate,
}
DRAIN: dict[str, Callable[[str, Drained], Awaitable[None]]] = {
    "arq": drain_arq,
    **{name: partial(drain_pgqueuer, batch=batch) for name, batch in BATCHES.items()},
    "procrastinate": drain_procrastinate,
}


async def drain(name: str) -> Drained:
    """Execute until the queue is empty."""
    drained = Drained()
    await DRAIN[name](os.environ["BENCH_QUEUE_URL"], drained)
    return drained


def main() -> None:
    logging.disable(logging.WARNING)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(drain(sys.argv[1]))))


if __name__ == "__main__":
    main()
