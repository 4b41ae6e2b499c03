"""The API's figures for Prometheus, on a port that is not public; docs/operations.md explains each name."""

from fusion_core.db.pool import Pool
from fusion_http.request_context import Answered
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from fusion_api.event_hub import EventHub
from fusion_api.settings import ApiSettings

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One registry an application. Labels are closed lists: methods, our own routes, statuses, codes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fusion_api_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "fusion_api_request_duration_seconds",
            "From a request's head to the head of its answer",
            ["method", "route"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.problems = Counter("fusion_api_problems", "Answers that are problems", ["code"], registry=self.registry)
        self.streams = Gauge("fusion_api_event_streams", "Open streams of a job's events", registry=self.registry)
        self.event_loop = Gauge(
            "fusion_api_event_loop_timestamp_seconds",
            "When it last looked for events",
            registry=self.registry,
        )
        self.connections = Gauge(
            "fusion_api_database_connections", "Connections to Postgres", ["state"], registry=self.registry
        )
        self.connections_limit = Gauge(
            "fusion_api_database_connections_limit", "The most that this process opens", registry=self.registry
        )

    def answered(self, answer: Answered) -> None:
        """Count one request."""
        self.requests.labels(answer.method, answer.route, str(answer.status)).inc()
        self.latency.labels(answer.method, answer.route).observe(answer.seconds)
        if answer.problem is not None:
            self.problems.labels(answer.problem).inc()

    def watch(self, pool: Pool, hub: EventHub) -> None:
        """Ask these at each scrape."""
        self.streams.set_function(lambda: hub.streams)
        self.event_loop.set_function(lambda: hub.looked_at)
        self.connections.labels("busy").set_function(lambda: pool.get_size() - pool.get_idle_size())
        self.connections.labels("idle").set_function(pool.get_idle_size)
        self.connections_limit.set(pool.get_max_size())

    def serve(self, settings: ApiSettings) -> None:
        """Answer /metrics from a thread for as long as the process lives. Raises OSError where the port is taken."""
        if settings.metrics_port:
            start_http_server(settings.metrics_port, addr=settings.metrics_host, registry=self.registry)
