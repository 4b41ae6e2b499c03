"""The doorbell: tells idle workers over Redis that a job may be claimed. Postgres is the queue; a lost ring delays.

A ring is an arq job `claim_job(job_id, epoch)` in the queue `fusion:doorbell:<pool>`, with the id `<job>:<epoch>:<n>`:
n comes from the row by compare-and-set, so that of several replicas one rings, and arq never refuses a used id.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from itertools import groupby

import asyncpg
import msgspec
import structlog
from arq.connections import ArqRedis
from fusion_core.db import sweep
from fusion_core.db.pool import POSTGRES_AWAY, OwnConnection, Pool, connect
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.settings import OrchestratorSettings
from fusion_orchestrator.wake import Wake

QUEUE_PREFIX = "fusion:doorbell:"
FUNCTION = "claim_job"
CHANNEL = "job_ready"
EXPIRES_S = 60

_REDIS_TIMEOUT_S = 2.0
_ANSWERED_EVERY_S = 0.05  # as often as an idle worker looks into Redis
_PROBE_EVERY_S = 15.0
_PROBE_TIMEOUT_S = 5.0
_MAX_BACKOFF_S = 10.0

# What a loop logs and outlives: it comes round again.
DATABASE_AWAY = (*POSTGRES_AWAY, asyncpg.PostgresError)

log = structlog.get_logger()


def connect_redis(url: str) -> ArqRedis:
    """A client that connects when it is first used, and again by itself; every call has a deadline."""
    connections: ConnectionPool = ConnectionPool.from_url(
        url, socket_timeout=_REDIS_TIMEOUT_S, socket_connect_timeout=_REDIS_TIMEOUT_S
    )
    redis = ArqRedis(connections, job_serializer=msgspec.json.encode, job_deserializer=msgspec.json.decode)
    redis.auto_close_connection_pool = True
    return redis


class Doorbell:
    """Rings for claimable jobs: at once when Postgres says a job became ready, and in every sweep."""

    def __init__(
        self,
        pool: Pool,
        redis: ArqRedis,
        settings: OrchestratorSettings,
        metrics: Metrics,
        wakes: Mapping[str, Wake] | None = None,
    ) -> None:
        """`wakes` are other loops to wake, by the channel that they want to hear."""
        self._pool = pool
        self._redis = redis
        self._settings = settings
        self._metrics = metrics
        self._ready = Wake(settings.sweep_s)
        self._wakes = {CHANNEL: self._ready, **(wakes or {})}
        self._backlog_until = 0.0  # by the monotonic clock

    async def wait(self) -> None:
        """Return when a job may be due: one became ready, or a sweep's time has passed.

        As a backlog's rings are answered, the jobs behind them become due, of which nobody is notified: it looks often.
        """
        await self._ready.wait(_ANSWERED_EVERY_S if time.monotonic() < self._backlog_until else None)

    async def ring_due(self) -> int:
        """Ring once for every job that is due; answers how many rings were sent.

        Redis being away is logged and counted, and the jobs are due again after `ring_again_s`.
        """
        depth = self._settings.ring_depth
        async with self._pool.acquire() as conn:
            due = await sweep.due_rings(conn, depth=depth, again_s=self._settings.ring_again_s)
        sent = 0
        try:
            for pool, rings in groupby(due, key=lambda ring: ring.pool):
                count = await self._ring_pool(pool, rings)
                self._metrics.rings.labels(pool).inc(count)
                sent += count
        except (RedisError, OSError) as error:
            self._metrics.ring_errors.inc()
            log.warning("doorbell_unavailable", error=repr(error), advice="workers poll Postgres meanwhile")
        now = time.monotonic()
        if sent >= depth or (sent and now < self._backlog_until):
            self._backlog_until = now + self._settings.sweep_s
        return sent

    async def _ring_pool(self, pool: str, rings: Iterable[sweep.Ring]) -> int:
        sent = 0
        for due in rings:
            async with self._pool.acquire() as conn:
                number = await sweep.ring(conn, due)
            if number is None:
                continue  # another replica rings, or the job is no longer queued
            await self._send(due, number)
            sent += 1
        if sent:
            await self._keep_shallow(QUEUE_PREFIX + pool)
        return sent

    async def _send(self, due: sweep.Ring, number: int) -> None:
        await self._redis.enqueue_job(
            FUNCTION,
            str(due.job_id),
            due.epoch,
            _job_id=f"{due.job_id}:{due.epoch}:{number}",
            _queue_name=QUEUE_PREFIX + due.pool,
            _expires=EXPIRES_S,
        )
        log.info("rang", job_id=str(due.job_id), epoch=due.epoch, pool=due.pool, ring=number)

    async def _keep_shallow(self, queue: str) -> None:
        """Drop expired rings, then the oldest beyond the depth: newer rings know better which jobs come first."""
        expired = int((time.time() - EXPIRES_S) * 1000)
        await self._redis.zremrangebyscore(queue, "-inf", expired)
        await self._redis.zremrangebyrank(queue, 0, -self._settings.ring_depth - 1)

    async def listen(self) -> None:
        """Hear NOTIFY for ever, reconnecting with a growing, jittered wait. Ends only by cancellation."""
        backoff_s = 0.25
        while True:
            try:
                connection = await connect(self._settings.direct_url, application_name="fusion-doorbell")
            except DATABASE_AWAY as error:
                log.warning("listen_failed", error=repr(error), retry_in_s=backoff_s)
            else:
                backoff_s = 0.25
                await self._listen_on(connection)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, hides nothing
            backoff_s = min(_MAX_BACKOFF_S, backoff_s * 2)

    async def _listen_on(self, connection: OwnConnection) -> None:
        """Hear until the connection dies; a probe finds one that died in silence."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        try:
            for channel, wake in self._wakes.items():
                await connection.add_listener(channel, lambda *_, wake=wake: wake.set())
                wake.set()  # what was notified while nobody listened
            self._metrics.listening.set(1)
            while not lost.is_set():
                try:
                    async with asyncio.timeout(_PROBE_EVERY_S):
                        await lost.wait()
                except TimeoutError:
                    await connection.execute("select 1", timeout=_PROBE_TIMEOUT_S)
            log.warning("listen_lost", advice="reconnecting; sweeps ring meanwhile")
        except DATABASE_AWAY as error:
            log.warning("listen_lost", error=repr(error))
        finally:
            self._metrics.listening.set(0)
            connection.terminate()
