"""The orchestrator's loops: listen, ring, sweep, expire, retention, prune, webhooks, marks. Each outlives any error."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog
from fusion_core.db.pool import Pool, close_pool, connect, connect_pool, queries
from fusion_core.storage import Storage

from fusion_orchestrator import retention
from fusion_orchestrator.doorbell import DATABASE_AWAY, Doorbell, connect_redis
from fusion_orchestrator.figures import Figures
from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.pod_marks import PodMarks
from fusion_orchestrator.prune import Pruner, PruneReport
from fusion_orchestrator.reclaim import end_overdue, expire_stopped, mark_gone_workers, reclaim_leases
from fusion_orchestrator.settings import OrchestratorSettings
from fusion_orchestrator.wake import Wake
from fusion_orchestrator.webhooks.loops import Webhooks

_PASS_DEADLINE_S = 60.0
_PRUNE_DEADLINE_S = 6 * 3600.0
_RETAIN_DEADLINE_S = 3600.0
_DEADLINES_S = {"prune": _PRUNE_DEADLINE_S, "retention": _RETAIN_DEADLINE_S}
_EXPIRE_EVERY_S = 60.0
_OVERDUE_AFTER_S = 180.0  # without a pass, at least: a short outage is no loop that stands still
_IDEMPOTENCY_KEY_HOURS = 48

log = structlog.get_logger()


class Service:
    """One replica. `tasks` are its loops; none of them ends before the service does."""

    def __init__(
        self, settings: OrchestratorSettings, pool: Pool, doorbell: Doorbell, webhooks: Webhooks, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.pool = pool
        self.metrics = metrics
        self.figures = Figures(pool, metrics)
        self._doorbell = doorbell
        self._webhooks = webhooks
        self.prune_wake = Wake(_jittered(settings.prune_every_s))
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        sweep_s, retention_s, prune_s = (
            self.settings.sweep_s,
            self.settings.retention_every_s,
            self.settings.prune_every_s,
        )
        loops = {
            "listen": self._doorbell.listen(),
            "ring": self._forever("ring", self._ring, self._doorbell.wait, sweep_s),
            "sweep": self._forever("sweep", self._sweep, self._pause(sweep_s), sweep_s),
            "webhooks": self._forever("webhooks", self._webhooks.dispatch, self._webhooks.wait, sweep_s),
            "webhook_tasks": self._webhooks.run_tasks(),
            "expire": self._forever("expire", self._expire, self._pause(_EXPIRE_EVERY_S), _EXPIRE_EVERY_S),
            "retention": self._forever(
                "retention", self._retain, self._pause(retention_s), retention_s, wait_first=True
            ),
            "prune": self._forever("prune", self._prune, self.prune_wake.wait, prune_s, wait_first=True),
        }
        if self.settings.mark_pods:
            marks = PodMarks(self.pool, self.settings)
            mark_s = self.settings.mark_every_s
            loops["marks"] = self._forever("marks", marks.renew, self._pause(mark_s), mark_s)
        self.tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]

    async def stop(self, deadline_s: float) -> None:
        """Cancel every loop and wait for them; what is still open after the deadline is dropped."""
        for task in self.tasks:
            task.cancel()
        _, pending = await asyncio.wait(self.tasks, timeout=deadline_s)
        if pending:
            log.warning("loops_did_not_stop", loops=sorted(task.get_name() for task in pending))

    def dead_loops(self) -> list[str]:
        """Loops that ended although the service runs: never, unless Fusion has a bug."""
        return [task.get_name() for task in self.tasks if task.done()]

    async def _ring(self) -> None:
        await self._doorbell.ring_due()

    async def _sweep(self) -> None:
        await reclaim_leases(self.pool, self.settings, self.metrics)

    async def _expire(self) -> None:
        await expire_stopped(self.pool, self.metrics)
        await end_overdue(self.pool)
        await mark_gone_workers(self.pool, self.settings, self.metrics)
        await queries.delete_old_idempotency_keys(self.pool, hours=_IDEMPOTENCY_KEY_HOURS, limit=10_000)
        await self._webhooks.forget_old()

    async def _retain(self) -> None:
        connection = await connect(
            self.settings.direct_url, application_name="fusion-retention", statement_timeout_s=_RETAIN_DEADLINE_S
        )
        try:
            for rule, rows in (await retention.enforce(connection, self.settings)).items():
                self.metrics.retained_no_longer.labels(rule).inc(rows)
        finally:
            connection.terminate()

    async def _prune(self) -> None:
        async with asyncio.timeout(_PRUNE_DEADLINE_S):
            report = await self.prune_once(dry_run=False)
        for kind in ("attempt", "upload", "base_model"):
            self.metrics.pruned.labels(kind).inc(getattr(report, f"{kind}_objects"))

    async def prune_once(self, *, dry_run: bool) -> PruneReport:
        """One pass over the bucket. Raises what Pruner.run raises."""
        async with Storage(self.settings) as storage:
            pruner = Pruner(
                self.pool,
                storage,
                min_age=timedelta(seconds=self.settings.prune_min_age_s),
                model_days=self.settings.deleted_model_days,
                dry_run=dry_run,
            )
            return await pruner.run()

    @staticmethod
    def _pause(seconds: float) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.sleep(_jittered(seconds))

    async def _forever(
        self,
        name: str,
        one_pass: Callable[[], Awaitable[None]],
        wait: Callable[[], Awaitable[object]],
        every_s: float,
        *,
        wait_first: bool = False,
    ) -> None:
        """`every_s` is the longest pause between two passes."""
        deadline_s = _DEADLINES_S.get(name, _PASS_DEADLINE_S)
        self.metrics.begin_loop(name, overdue_after_s=max(_OVERDUE_AFTER_S, 2 * every_s + deadline_s))
        if wait_first:
            await wait()
        while True:
            try:
                async with asyncio.timeout(deadline_s):
                    await one_pass()
                self.metrics.last_pass.labels(name).set_to_current_time()
            except DATABASE_AWAY as error:
                self.metrics.loop_errors.labels(name).inc()
                log.warning("pass_failed", loop=name, error=repr(error))
            except Exception:  # a loop outlives a bug too: it is logged with its trace and counted
                self.metrics.loop_errors.labels(name).inc()
                log.exception("pass_broke", loop=name)
            await wait()


def _jittered(seconds: float) -> float:
    """A little less, so that replicas started together drift apart."""
    return seconds * random.uniform(0.8, 1.0)  # noqa: S311 - spreads load, hides nothing


@asynccontextmanager
async def running(settings: OrchestratorSettings) -> AsyncIterator[Service]:
    """A service with its connections. Nothing needs to be reachable at the start: the loops try until it is."""
    metrics = Metrics()
    pool = await connect_pool(
        settings.database_url,
        application_name="fusion-orchestrator",
        min_size=0,
        prepared=settings.prepared_statements,
    )
    redis = connect_redis(settings.redis_url)
    webhooks = Webhooks(pool, redis, settings, metrics)
    doorbell = Doorbell(pool, redis, settings, metrics, {webhooks.CHANNEL: webhooks.wake})
    service = Service(settings, pool, doorbell, webhooks, metrics)
    service.start()
    try:
        yield service
    finally:
        await service.stop(settings.shutdown_s / 2)
        await redis.aclose()
        await close_pool(pool, settings.shutdown_s / 4)
