"""The arq worker of the queue `fusion:webhooks`, inside every replica: each ring becomes one attempt here or there."""

import asyncio
from typing import Any, cast
from uuid import UUID

import msgspec
import structlog
from arq.connections import RedisSettings
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func
from redis.exceptions import RedisError

from fusion_orchestrator.webhooks.dispatch import FUNCTION, QUEUE, Deliverer
from fusion_orchestrator.webhooks.send import DEADLINE_S

_POLL_DELAY_S = 0.1
_TIMEOUT_S = 4 * DEADLINE_S
_AGAIN_S = 2.0

log = structlog.get_logger()


class DeliveryTasks:
    """Takes rings from Redis until cancelled; a Redis that is away or restarted is tried again."""

    def __init__(self, redis_url: str, deliverer: Deliverer, concurrency: int) -> None:
        self._redis_url = redis_url
        self._deliverer = deliverer
        self._concurrency = concurrency

    async def run(self) -> None:
        while True:
            worker = self._make_worker()
            try:
                await worker.main()
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("webhook_queue_unreachable", error=repr(error), again_in_s=_AGAIN_S)
            finally:
                await _close(worker)
            await asyncio.sleep(_AGAIN_S)

    async def _deliver(self, _ctx: dict[Any, Any], delivery_id: str) -> None:
        await self._deliverer.deliver(UUID(delivery_id))

    def _make_worker(self) -> Worker:
        settings = RedisSettings.from_dsn(self._redis_url)
        settings.conn_timeout = 5
        settings.conn_retries = 1
        settings.retry_on_timeout = True
        settings.retry_on_error = [RedisError]
        deliver = func(
            cast(WorkerCoroutine, self._deliver), name=FUNCTION, keep_result=0, timeout=_TIMEOUT_S, max_tries=1
        )
        return Worker(
            functions=[deliver],
            queue_name=QUEUE,
            redis_settings=settings,
            max_jobs=self._concurrency,
            poll_delay=_POLL_DELAY_S,
            keep_result=0,
            job_timeout=_TIMEOUT_S,
            health_check_interval=3600,
            handle_signals=False,
            job_serializer=msgspec.json.encode,
            job_deserializer=msgspec.json.decode,
        )


async def _close(worker: Worker) -> None:
    """What arq's own close does, without a deprecated call. Attempts under way are cancelled; their leases run out."""
    for task in worker.tasks.values():
        task.cancel()
    await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
    if worker.pool is not None:
        try:
            await asyncio.wait_for(worker.pool.aclose(close_connection_pool=True), 5)
        except (RedisError, OSError, TimeoutError) as error:
            log.debug("webhook_queue_close_failed", error=repr(error))
