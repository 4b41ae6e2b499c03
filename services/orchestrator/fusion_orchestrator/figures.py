"""The figures that live in Postgres, read when somebody asks.

However often that is, they are at most a sixth of one connection's time: a second pass waits five times as long as the
first one took, and a second at least.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from fusion_core.db.pool import Pool, queries

from fusion_orchestrator.metrics import Metrics

_DEADLINE_S = 5.0
_FRESH_S = 1.0
_REST = 5.0  # times what a pass took
SILENT_S = 60.0  # workers report every few seconds
AGE_BUCKETS_S = (60, 300, 600, 1800, 3600, 4 * 3600)


class Figures:
    """Fills the gauges of `Metrics`. `demand` has the slots that each pool with work or workers wants."""

    def __init__(self, pool: Pool, metrics: Metrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._reading = asyncio.Lock()
        self._fresh_until = 0.0
        self.demand: dict[str, int] = {}

    async def refresh(self) -> None:
        """Read them anew if they are old. Raises OSError, TimeoutError or asyncpg's errors."""
        async with self._reading:
            if time.monotonic() < self._fresh_until:
                return
            self._fresh_until, began = 0.0, time.monotonic()
            self._forget()
            async with asyncio.timeout(_DEADLINE_S), self._pool.acquire() as conn:
                self._show_jobs([row async for row in queries.jobs_by_state(conn)])
                self._show_demand([row async for row in queries.pool_demand(conn)])
                self._show_checkpoints([row async for row in queries.checkpoint_ages(conn)])
                self._show_workers([row async for row in queries.workers_by_state(conn, silent_s=SILENT_S)])
                self._show_holds(await queries.holds(conn))
                self._metrics.overdue.set(await queries.overdue_leases(conn))
                self._metrics.outbox_depth.set(await queries.outbox_depth(conn))
                backlog = await queries.webhook_backlog(conn)
            self._metrics.webhook_backlog.set(backlog["deliveries"])
            self._metrics.webhook_lag.set(_age_s(backlog["oldest"]))
            self._metrics.database_up.set(1)
            ended = time.monotonic()
            self._fresh_until = ended + max(_FRESH_S, _REST * (ended - began))

    def _forget(self) -> None:
        """Drop what Postgres said before: a pool without jobs has no figures, and old ones would mislead."""
        seen = self._metrics
        for gauge in (seen.jobs, seen.oldest_queued, seen.quarantined, seen.demand, seen.queue_age):
            gauge.clear()
        for gauge in (seen.checkpoint_age, seen.checkpoint_ages, seen.workers, seen.worker_failures, seen.holds):
            gauge.clear()
        seen.database_up.set(0)

    def _show_jobs(self, rows: Iterable[Mapping[str, Any]]) -> None:
        quarantined: defaultdict[str, int] = defaultdict(int)
        for row in rows:
            self._metrics.jobs.labels(row["pool"], row["state"]).set(row["jobs"])
            quarantined[row["pool"]] += row["quarantined"]
            if row["state"] == "queued":
                self._metrics.oldest_queued.labels(row["pool"]).set(_age_s(row["oldest"]))
        for pool, jobs in quarantined.items():
            self._metrics.quarantined.labels(pool).set(jobs)

    def _show_demand(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.demand = {}
        for row in rows:
            self.demand[row["pool"]] = row["slots"]
            self._metrics.demand.labels(row["pool"]).set(row["slots"])
            self._metrics.queue_age.labels(row["pool"]).set(_age_s(row["since"]))

    def _show_checkpoints(self, rows: Iterable[Mapping[str, Any]]) -> None:
        ages: defaultdict[str, list[float]] = defaultdict(list)
        for row in rows:
            ages[row["pool"]].append(row["age_s"])
        for pool, of_pool in ages.items():
            self._metrics.checkpoint_age.labels(pool).set(max(of_pool))
            for bucket in AGE_BUCKETS_S:
                younger = sum(age <= bucket for age in of_pool)
                self._metrics.checkpoint_ages.labels(pool, str(bucket)).set(younger)
            self._metrics.checkpoint_ages.labels(pool, "+Inf").set(len(of_pool))

    def _show_holds(self, row: Mapping[str, Any]) -> None:
        for kind in ("pauses", "cordons", "drains"):
            self._metrics.holds.labels(kind.removesuffix("s")).set(row[kind])

    def _show_workers(self, rows: Iterable[Mapping[str, Any]]) -> None:
        failures: defaultdict[str, int] = defaultdict(int)
        for row in rows:
            self._metrics.workers.labels(row["pool"], row["state"]).set(row["workers"])
            failures[row["pool"]] = max(failures[row["pool"]], row["failures"])
        for pool, most in failures.items():
            self._metrics.worker_failures.labels(pool).set(most)
            self._metrics.workers_lost.labels(pool)  # from now on 0: of what was not there no increase is seen


def _age_s(moment: datetime | None) -> float:
    return 0.0 if moment is None else max(0.0, (datetime.now(UTC) - moment).total_seconds())
