"""From the outbox to the receivers: fan out, ring over Redis for what is due, and deliver what nobody came for.

Postgres has the schedule. Redis spreads the deliveries over the replicas; without it each sweep delivers by itself.
"""

import asyncio
from uuid import UUID

import structlog
from arq.connections import ArqRedis
from fusion_core import failpoints, tracing
from fusion_core.db import webhooks
from fusion_core.db.pool import Pool
from fusion_core.db.webhooks import Answer, Delivery, Ring
from redis.exceptions import RedisError

from fusion_orchestrator.doorbell import DATABASE_AWAY
from fusion_orchestrator.event_counts import count_events
from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.wake import Wake
from fusion_orchestrator.webhooks.send import DEADLINE_S, Sender

QUEUE = "fusion:webhooks"
FUNCTION = "deliver_webhook"
RING_EXPIRES_S = 60

_FAN_OUT = 200
_LEASE_S = 2 * DEADLINE_S

log = structlog.get_logger()


class Deliverer:
    """Makes attempts, so many at once and no more, whoever asks for them; `wake` is set after each."""

    def __init__(self, pool: Pool, sender: Sender, metrics: Metrics, wake: Wake, concurrency: int) -> None:
        self._pool = pool
        self._sender = sender
        self._metrics = metrics
        self._wake = wake
        self._free = asyncio.Semaphore(concurrency)

    async def deliver(self, delivery_id: UUID) -> None:
        """Claim, send, record. A delivery that another process has, or that is done, is left alone.

        With Postgres away the delivery is due still, and rung for again.
        """
        try:
            await self._deliver(delivery_id)
        except DATABASE_AWAY as error:
            log.warning("webhook_attempt_lost", delivery_id=str(delivery_id), error=repr(error))

    async def _deliver(self, delivery_id: UUID) -> None:
        async with self._free:
            async with self._pool.acquire() as conn:
                delivery = await webhooks.claim(conn, delivery_id, lease_s=_LEASE_S)
            if delivery is None:
                return
            failpoints.hit("webhook_claimed")
            answer = await self._send(delivery)
            failpoints.hit("webhook_sent")
            async with self._pool.acquire() as conn:
                recorded = await webhooks.record(conn, delivery, answer)
        self._wake.set()  # the endpoint may have more that is due
        self._metrics.webhook_attempts.labels(answer.outcome).inc()
        _tell(delivery, answer, recorded)

    async def _send(self, delivery: Delivery) -> Answer:
        about: tracing.Attributes = {
            "fusion.webhook_id": str(delivery.endpoint_id),
            "fusion.attempt": delivery.attempts,
        }
        with tracing.span("send webhook", about, parent=delivery.traceparent, kind="client") as span:
            answer = await self._sender.send(delivery)
            span.set({"fusion.outcome": answer.outcome, "http.response.status_code": answer.status or 0})
            return answer


class Dispatcher:
    """One pass: the outbox is emptied, and every delivery that is due is rung for or delivered."""

    def __init__(
        self, pool: Pool, redis: ArqRedis, metrics: Metrics, deliverer: Deliverer | None, *, again_s: float, batch: int
    ) -> None:
        self._pool = pool
        self._redis = redis
        self._metrics = metrics
        self._deliverer = deliverer
        self._again_s = again_s
        self._batch = batch
        self._own: set[asyncio.Task[None]] = set()

    async def dispatch(self) -> None:
        """Without a deliverer (no key is set) events are only fanned out. Raises what Postgres raises while away.

        What this replica delivers by itself goes on after the pass, so that a slow receiver holds up nobody else.
        """
        async with self._pool.acquire() as conn:
            full = True
            while full:
                events = await webhooks.fan_out(conn, limit=_FAN_OUT)
                count_events(self._metrics, events)
                full = len(events) == _FAN_OUT
            failpoints.hit("webhook_fanned_out")
            if self._deliverer is None:
                return
            free = self._batch - len(self._own)
            due = await webhooks.ring_due(conn, again_s=self._again_s, limit=free)
        unheard = [ring for ring in due if ring.number > 1]
        unsent = await self._ring([ring for ring in due if ring.number == 1])
        for ring in unheard + unsent:
            task = asyncio.create_task(self._deliverer.deliver(ring.delivery_id))
            self._own.add(task)
            task.add_done_callback(self._own.discard)

    async def close(self) -> None:
        """Cancel what this replica delivers by itself; the leases run out, and it is sent again."""
        own = list(self._own)
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)

    async def _ring(self, rings: list[Ring]) -> list[Ring]:
        """Put deliveries into the queue; answers those that Redis did not take."""
        for at, ring in enumerate(rings):
            try:
                await self._redis.enqueue_job(
                    FUNCTION, str(ring.delivery_id), _queue_name=QUEUE, _expires=RING_EXPIRES_S
                )
            except (RedisError, OSError) as error:
                self._metrics.ring_errors.inc()
                log.warning("webhook_queue_unavailable", error=repr(error), advice="this replica delivers by itself")
                return rings[at:]
        return []


def _tell(delivery: Delivery, answer: Answer, recorded: bool) -> None:
    """The URL is left out: it may have a secret of the receiver's in it."""
    log.info(
        "webhook_attempt",
        delivery_id=str(delivery.id),
        webhook_id=str(delivery.endpoint_id),
        message_id=delivery.message_id,
        attempt=delivery.attempts,
        outcome=answer.outcome,
        status=answer.status,
        recorded=recorded,
    )
