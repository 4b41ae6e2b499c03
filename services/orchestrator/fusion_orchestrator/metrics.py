"""The orchestrator's figures for Prometheus; docs/operations.md explains each name."""

from datetime import UTC, datetime

from fusion_core.db.pool import Pool, queries
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_DEADLINE_S = 5.0


class Metrics:
    """One registry a service: two services in one process (as in tests) do not share figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = self._gauge("fusion_jobs", "Jobs that have not ended", ["pool", "state"])
        self.oldest_queued = self._gauge(
            "fusion_oldest_queued_age_seconds", "Age of the oldest queued job, since it was created", ["pool"]
        )
        self.outbox_depth = self._gauge("fusion_outbox_depth", "Events that wait to become webhook deliveries")
        self.webhook_backlog = self._gauge("fusion_webhook_backlog", "Webhook deliveries that are due and not done")
        self.webhook_lag = self._gauge(
            "fusion_webhook_backlog_age_seconds", "For how long the oldest webhook delivery has been due"
        )
        self.database_up = self._gauge("fusion_database_up", "1 when Postgres answered this scrape")
        self.listening = self._gauge("fusion_doorbell_listening", "1 while LISTEN is connected")
        self.rings = self._counter("fusion_rings", "Doorbell messages sent", ["pool"])
        self.ring_errors = self._counter("fusion_ring_errors", "Rings that Redis did not take")
        self.webhook_attempts = self._counter("fusion_webhook_attempts", "Webhooks sent", ["outcome"])
        self.reclaims = self._counter("fusion_reclaims", "Expired leases taken back")
        self.expired_stops = self._counter("fusion_expired_stops", "Stopped jobs cancelled for their age")
        self.pruned = self._counter("fusion_pruned_objects", "Objects deleted because no row names them", ["kind"])
        self.retained_no_longer = self._counter(
            "fusion_retention_rows", "Rows taken away because their period is over", ["rule"]
        )
        self.loop_errors = self._counter("fusion_loop_errors", "Passes of a loop that ended in an error", ["loop"])
        self.sweep_seconds = Histogram("fusion_sweep_duration_seconds", "One reclaim sweep", registry=self.registry)

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(name, text, labels or [], registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or [], registry=self.registry)

    async def observe(self, pool: Pool) -> None:
        """Read the figures that live in Postgres. Raises OSError, TimeoutError or asyncpg's errors."""
        async with pool.acquire(timeout=_DEADLINE_S) as conn:
            rows = [row async for row in queries.jobs_by_state(conn)]
            depth = await queries.outbox_depth(conn)
            backlog = await queries.webhook_backlog(conn)
        self.forget()
        for row in rows:
            self.jobs.labels(row["pool"], row["state"]).set(row["jobs"])
            if row["state"] == "queued":
                self.oldest_queued.labels(row["pool"]).set(_age_s(row["oldest"]))
        self.outbox_depth.set(depth)
        self.webhook_backlog.set(backlog["deliveries"])
        self.webhook_lag.set(_age_s(backlog["oldest"]))
        self.database_up.set(1)

    def forget(self) -> None:
        """Drop what Postgres said before: a pool without jobs has no figures, and old ones would mislead."""
        self.jobs.clear()
        self.oldest_queued.clear()
        self.database_up.set(0)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)


def _age_s(moment: datetime | None) -> float:
    return 0.0 if moment is None else max(0.0, (datetime.now(UTC) - moment).total_seconds())
