"""The doorbell: tells idle workers over Redis that a job may be claimed. Postgres is the queue; a lost ring delays.

A ring is an arq job `claim_job(job_id, epoch)` in the queue `fusion:doorbell:<pool>`, with the id `<job>:<epoch>:<n>`:
n comes from the row by compare-and-set, so that of several replicas one rings, and arq never refuses a used id.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import asyncpg
import msgspec
import structlog
from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.jobs import serialize_job
from arq.utils import timestamp_ms
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
_ANSWERED_EVERY_S = 0.01
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
        self._rung_pools: set[str] = set()

    async def wait(self) -> None:
        """Return when a job may be due: one became ready, or a sweep's time has passed.

        As a backlog's rings are answered, the jobs behind them become due, of which nobody is notified: then it returns
        as soon as a queue is half empty.
        """
        while time.monotonic() < self._backlog_until:
            if await self._ready.wait(_ANSWERED_EVERY_S) or await self._half_answered():
                return
        await self._ready.wait()

    async def _half_answered(self) -> bool:
        """Whether a queue that was rung into lately has less than half its rings left."""
        with contextlib.suppress(RedisError, OSError):
            depths = await self._depths(self._rung_pools)
            return min(depths.values(), default=0) < self._settings.ring_depth / 2
        return False

    async def ring_due(self) -> int:
        """Ring once for every job that is due, as far as its queue has room; answers how many rings were sent.

        What the queue has no room for stays due. Redis being away is logged and counted, and whatever was won by then
        is due again after `ring_again_s`.
        """
        depth = self._settings.ring_depth
        async with self._pool.acquire() as conn:
            due = await sweep.due_rings(conn, depth=depth, again_s=self._settings.ring_again_s)
        if not due:
            return 0
        sent = 0
        try:
            by_pool = {pool: list(rings) for pool, rings in groupby(due, key=lambda ring: ring.pool)}
            depths = await self._depths(by_pool)
            roomy = [ring for pool, rings in by_pool.items() for ring in rings[: max(0, depth - depths[pool])]]
            async with self._pool.acquire() as conn:
                won = await sweep.ring(conn, roomy)
            await self._send(won)
            sent = len(won)
            if won:
                self._note_backlog(by_pool, depths)
        except (RedisError, OSError) as error:
            self._metrics.ring_errors.inc()
            log.warning("doorbell_unavailable", error=repr(error), advice="workers poll Postgres meanwhile")
        return sent

    def _note_backlog(self, due: Mapping[str, Sequence[sweep.Ring]], depths: Mapping[str, int]) -> None:
        """Pools whose queues are at least half full, or whose backlog is still being answered, are looked at often."""
        now = time.monotonic()
        rung = {pool for pool, rings in due.items() if depths[pool] + len(rings) >= self._settings.ring_depth / 2}
        if now < self._backlog_until:
            rung |= self._rung_pools & due.keys()
        if rung:
            self._rung_pools = rung
            self._backlog_until = now + self._settings.sweep_s

    async def _depths(self, pools: Iterable[str]) -> dict[str, int]:
        """How many rings wait in each pool's queue, without those that have expired."""
        pools = list(pools)
        expired = timestamp_ms() - EXPIRES_S * 1000
        async with self._redis.pipeline(transaction=False) as pipe:
            for pool in pools:
                pipe.zremrangebyscore(QUEUE_PREFIX + pool, "-inf", expired)
                pipe.zcard(QUEUE_PREFIX + pool)
            return dict(zip(pools, (await pipe.execute())[1::2], strict=True))

    async def _send(self, rings: Sequence[sweep.Ring]) -> None:
        """What arq's `enqueue_job` writes, in one round trip: ids are new, so nothing is watched."""
        now = timestamp_ms()
        async with self._redis.pipeline(transaction=True) as pipe:
            for place, ring in enumerate(rings):
                ring_id = f"{ring.job_id}:{ring.epoch}:{ring.ring_count}"
                arguments = (str(ring.job_id), ring.epoch)
                body = serialize_job(FUNCTION, arguments, {}, None, now, serializer=self._redis.job_serializer)
                pipe.psetex(job_key_prefix + ring_id, EXPIRES_S * 1000, body)
                # Within a millisecond that has passed: due at once, in their order.
                pipe.zadd(QUEUE_PREFIX + ring.pool, {ring_id: now - 1 + place / len(rings)})
            await pipe.execute()
        for ring in rings:
            self._metrics.rings.labels(ring.pool).inc()
            log.info("rang", job_id=str(ring.job_id), epoch=ring.epoch, pool=ring.pool, ring=ring.ring_count)

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
