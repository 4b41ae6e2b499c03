"""What a replica does for webhooks: its dispatching loop, its arq worker, and the clearing away of old rows."""

import asyncio
from typing import ClassVar

from arq.connections import ArqRedis
from fusion_core.db import webhooks
from fusion_core.db.pool import Pool

from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.settings import OrchestratorSettings
from fusion_orchestrator.wake import Wake
from fusion_orchestrator.webhooks.dispatch import Deliverer, Dispatcher
from fusion_orchestrator.webhooks.send import Sender
from fusion_orchestrator.webhooks.tasks import DeliveryTasks


class Webhooks:
    """The parts, put together from the settings. Without FUSION_WEBHOOK_KEY the outbox is emptied and nothing sent."""

    CHANNEL: ClassVar = "webhook_due"

    def __init__(self, pool: Pool, redis: ArqRedis, settings: OrchestratorSettings, metrics: Metrics) -> None:
        self.wake = Wake(settings.sweep_s)
        self._pool = pool
        concurrency = settings.webhook_concurrency
        deliverer, self._tasks = None, None
        if settings.webhook_key is not None:
            sender = Sender(settings.webhook_key, settings.webhook_policy())
            deliverer = Deliverer(pool, sender, metrics, self.wake, concurrency)
            self._tasks = DeliveryTasks(settings.redis_url, deliverer, concurrency)
        self._dispatcher = Dispatcher(pool, redis, metrics, deliverer, again_s=settings.ring_again_s, batch=concurrency)

    async def dispatch(self) -> None:
        await self._dispatcher.dispatch()

    async def wait(self) -> None:
        await self.wake.wait()

    async def run_tasks(self) -> None:
        """Take deliveries from Redis until cancelled, which ends those that this replica took by itself, too."""
        try:
            if self._tasks is None:
                await asyncio.Event().wait()
            else:
                await self._tasks.run()
        finally:
            await self._dispatcher.close()

    async def forget_old(self) -> None:
        async with self._pool.acquire() as conn:
            await webhooks.forget_old(conn)
