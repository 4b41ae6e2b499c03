"""The doorbell: an arq worker whose only function claims a job in Postgres and returns at once.

Redis is a hint. Whatever happens to it, the daemon goes on looking into Postgres by itself.
"""

import asyncio
from typing import Any, cast
from uuid import UUID

import msgspec
import structlog
from arq.connections import RedisSettings
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func
from redis.exceptions import RedisError

from fusion_worker.slot import Slot

log = structlog.get_logger()
POLL_DELAY_S = 0.05
JOB_TIMEOUT_S = 5
AGAIN_S = 2.0


def queue_name(pool: str) -> str:
    return f"fusion:doorbell:{pool}"


class Doorbell:
    """Listens for one pool; picks nothing while the slot takes no jobs."""

    def __init__(self, redis_url: str, pool: str, slot: Slot) -> None:
        self._redis_url = redis_url
        self._pool = pool
        self._slot = slot
        self._worker: Worker | None = None

    async def _claim_job(self, _ctx: dict[Any, Any], job_id: str, epoch: int) -> None:
        if await self._slot.ring(UUID(job_id), epoch):
            log.info("claimed_by_ring", job_id=job_id)
        self.follow_slot()

    def follow_slot(self) -> None:
        """Listen as long as the slot takes jobs: a ring that is picked and not followed is another worker's loss."""
        if self._worker is not None:
            self._worker.allow_pick_jobs = self._slot.takes_jobs

    async def run(self) -> None:
        """Listen until cancelled; a Redis that is away, flushed or restarted is tried again."""
        while True:
            self._worker = self._make_worker()
            self.follow_slot()
            try:
                await self._worker.main()
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("doorbell_unreachable", error=str(error), again_in_s=AGAIN_S)
            finally:
                worker, self._worker = self._worker, None
                await _close(worker)
            await asyncio.sleep(AGAIN_S)

    def _make_worker(self) -> Worker:
        settings = RedisSettings.from_dsn(self._redis_url)
        settings.conn_timeout = 5
        settings.conn_retries = 1
        settings.retry_on_timeout = True
        settings.retry_on_error = [RedisError]
        return Worker(
            functions=[
                func(
                    cast(WorkerCoroutine, self._claim_job),
                    name="claim_job",
                    keep_result=0,
                    timeout=JOB_TIMEOUT_S,
                    max_tries=1,
                )
            ],
            queue_name=queue_name(self._pool),
            redis_settings=settings,
            max_jobs=1,
            poll_delay=POLL_DELAY_S,
            keep_result=0,
            job_timeout=JOB_TIMEOUT_S,
            health_check_interval=3600,
            handle_signals=False,
            job_serializer=msgspec.json.encode,
            job_deserializer=msgspec.json.decode,
        )


async def _close(worker: Worker | None) -> None:
    """What arq's own close does, without the call that redis-py has deprecated."""
    if worker is None or worker.pool is None:  # it may never have connected
        return
    for task in worker.tasks.values():
        task.cancel()
    await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
    try:
        await asyncio.wait_for(worker.pool.aclose(close_connection_pool=True), 5)
    except (RedisError, OSError, TimeoutError) as error:
        log.debug("doorbell_close_failed", error=str(error))
