"""The orchestrator's figures for Prometheus; docs/operations.md explains each name.

No label has an id in it: pools are the operator's words, types, states, reasons and codes are closed lists.
"""

from fusion_http.request_context import Answered
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

QUEUE_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
PRICED_TYPES = ("train", "finetune", "contract")
OUR_FAULTS = ("retry_budget_spent", "growth_not_preserving")  # jobs fail with these through no fault of a customer's
CRASH_CODES = ("trainer_crashed", "trainer_stalled", "gpu_fault", "disk_full", "inputs_unavailable", "upload_failed")
SWEEP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One registry a service: two services in one process (as in tests) do not share figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._describe_database()
        self._describe_events()
        self._describe_loops()

    def _describe_database(self) -> None:
        """What each scrape reads in Postgres (`figures.py`): the same from every replica."""
        self.database_up = self._gauge("fusion_database_up", "1 when Postgres answered this scrape")
        self.demand = self._gauge("fusion_pool_demand", "Slots wanted: running jobs and those that may start", ["pool"])
        self.queue_age = self._gauge(
            "fusion_queue_age_seconds", "For how long the job that has waited longest could have started", ["pool"]
        )
        self.jobs = self._gauge("fusion_jobs", "Jobs that have not ended", ["pool", "state"])
        self.oldest_queued = self._gauge(
            "fusion_oldest_queued_age_seconds", "Age of the oldest queued job, since it was created", ["pool"]
        )
        self.quarantined = self._gauge("fusion_quarantined_jobs", "Jobs that wait for an operator's look", ["pool"])
        self.overdue = self._gauge("fusion_leases_overdue", "Running jobs whose lease has run out")
        self.checkpoint_age = self._gauge(
            "fusion_checkpoint_age_seconds",
            "The longest that a running job has gone without a checkpoint",
            ["pool"],
        )
        self.checkpoint_ages = self._gauge(
            "fusion_checkpoint_age_jobs", "Running jobs by time without a checkpoint, cumulative", ["pool", "le"]
        )
        self.workers = self._gauge("fusion_workers", "Workers that are not gone", ["pool", "state"])
        self.worker_failures = self._gauge(
            "fusion_worker_failures_in_a_row", "Most jobs in a row that crashed on one worker", ["pool"]
        )
        self.holds = self._gauge("fusion_holds", "What operators hold back", ["kind"])
        self.outbox_depth = self._gauge("fusion_outbox_depth", "Events that wait to become webhook deliveries")
        self.webhook_backlog = self._gauge("fusion_webhook_backlog", "Webhook deliveries that are due and not done")
        self.webhook_lag = self._gauge(
            "fusion_webhook_backlog_age_seconds", "For how long the oldest webhook delivery has been due"
        )

    def _describe_events(self) -> None:
        """What is counted as the outbox is emptied (`event_counts.py`): each event by one replica."""
        self.claims = self._counter("fusion_attempts", "Attempts begun", ["pool", "type"])
        self.claim_latency = Histogram(
            "fusion_claim_latency_seconds",
            "From a job's creation to its first claim",
            ["pool"],
            buckets=QUEUE_BUCKETS_S,
            registry=self.registry,
        )
        self.interruptions = self._counter(
            "fusion_interruptions", "Attempts that gave their job back", ["reason", "code"]
        )
        self.quarantines = self._counter("fusion_quarantines", "Jobs held because they kept losing their workers")
        self.ended = self._counter("fusion_jobs_ended", "Jobs that reached their end", ["type", "state", "code"])
        self.billed = self._counter("fusion_ledger_microusd", "Micro-dollars written to the ledger", ["type"])
        self.ledger_faults = self._counter("fusion_ledger_faults", "Ended jobs whose ledger entry is absent or wrong")
        # An increase is seen of a series that was there before: what alerts look at begins at 0.
        for job_type in PRICED_TYPES:
            self.ended.labels(job_type, "completed", "none")
            for code in OUR_FAULTS:
                self.ended.labels(job_type, "failed", code)
            self.billed.labels(job_type)
        for reason in ("lost", "drain"):
            self.interruptions.labels(reason, "none")
        self.interruptions.labels("lost", "node_lost")
        for code in CRASH_CODES:
            self.interruptions.labels("crash", code)

    def _describe_loops(self) -> None:
        """What this replica does."""
        self.admin_requests = self._counter(
            "fusion_admin_requests", "Requests of operators answered", ["method", "route", "status"]
        )
        self.listening = self._gauge("fusion_doorbell_listening", "1 while LISTEN is connected")
        self.rings = self._counter("fusion_rings", "Doorbell messages sent", ["pool"])
        self.ring_errors = self._counter("fusion_ring_errors", "Rings that Redis did not take")
        self.webhook_attempts = self._counter("fusion_webhook_attempts", "Webhooks sent", ["outcome"])
        self.reclaims = self._counter("fusion_reclaims", "Expired leases taken back")
        self.workers_lost = self._counter("fusion_workers_lost", "Workers that fell silent without a word", ["pool"])
        self.expired_stops = self._counter("fusion_expired_stops", "Stopped jobs cancelled for their age")
        self.pruned = self._counter("fusion_pruned_objects", "Objects deleted because no row names them", ["kind"])
        self.retained_no_longer = self._counter(
            "fusion_retention_rows", "Rows taken away because their period is over", ["rule"]
        )
        self.loop_errors = self._counter("fusion_loop_errors", "Passes of a loop that ended in an error", ["loop"])
        self.last_pass = self._gauge("fusion_loop_last_pass_timestamp_seconds", "When a loop last succeeded", ["loop"])
        self.overdue_after = self._gauge(
            "fusion_loop_overdue_after_seconds", "A loop that has not passed for so long stands still", ["loop"]
        )
        self.sweep_seconds = Histogram(
            "fusion_sweep_duration_seconds", "One reclaim sweep", buckets=SWEEP_BUCKETS_S, registry=self.registry
        )

    def begin_loop(self, name: str, *, overdue_after_s: float) -> None:
        """From its beginning on, so that a loop which never ends a pass is noticed, too."""
        self.last_pass.labels(name).set_to_current_time()
        self.overdue_after.labels(name).set(overdue_after_s)

    def admin_answered(self, answer: Answered) -> None:
        """Count one request to the admin port."""
        self.admin_requests.labels(answer.method, answer.route, str(answer.status)).inc()

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(name, text, labels or [], registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or [], registry=self.registry)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)
