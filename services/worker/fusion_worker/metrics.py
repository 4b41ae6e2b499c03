"""The worker's figures for Prometheus, on a port of its own where one is set; docs/operations.md explains each name.

One process is one slot, so no label names the job: Prometheus' own `instance` names the worker.
"""

import shutil
from pathlib import Path

from fusion_core.problems import PROBLEMS
from fusion_core.trainer_protocol import Metrics as TrainingPoint
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from fusion_worker.settings import WorkerSettings

ATTEMPT_BUCKETS_S = (1, 10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)
UPLOAD_BUCKETS_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
UPLOAD_BUCKETS_BYTES = tuple(2.0**exponent for exponent in range(20, 41, 2))  # 1 MiB to 1 TiB
STEP_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GIB = 2**30


class Metrics:
    """One registry a daemon."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.busy = self._gauge("fusion_worker_busy", "1 while the slot holds a job")
        self.renewals = self._counter("fusion_worker_lease_renewals", "Heartbeats", "outcome")
        self.attempts = self._histogram(
            "fusion_worker_attempt_duration_seconds", "From claim to end", ATTEMPT_BUCKETS_S, "type"
        )
        self.crashes = self._counter("fusion_worker_crashes", "Attempts that ended without an outcome", "code")
        self.upload_seconds = self._histogram(
            "fusion_worker_checkpoint_upload_seconds", "Upload and read back", UPLOAD_BUCKETS_S
        )
        self.upload_bytes = self._histogram(
            "fusion_worker_checkpoint_upload_bytes", "Size of a checkpoint", UPLOAD_BUCKETS_BYTES
        )
        self.upload_failures = self._counter("fusion_worker_checkpoint_upload_failures", "Tries that failed")
        self.given_up = self._counter("fusion_worker_checkpoints_given_up", "Checkpoints whose every try failed")
        self.step_seconds = self._histogram(
            "fusion_worker_step_seconds", "One optimizer step, as reported", STEP_BUCKETS_S
        )
        self.tokens_per_s = self._gauge("fusion_worker_tokens_per_second", "Training throughput, as last reported")
        self.gpu_bytes = self._gauge("fusion_worker_gpu_memory_bytes", "Peak of the trainer's first GPU so far")
        self.cache = self._counter("fusion_worker_input_cache_lookups", "Inputs found on local disk or not", "result")
        self.turned = self._gauge("fusion_worker_loop_timestamp_seconds", "When its loop last turned")
        self.disk_free = self._gauge("fusion_worker_disk_free_bytes", "Free space for runs and inputs")
        self.disk_needed = self._gauge("fusion_worker_disk_needed_bytes", "With less free space nothing is claimed")
        for outcome in ("renewed", "missed", "lost"):
            self.renewals.labels(outcome)
        for result in ("hit", "miss"):
            self.cache.labels(result)
        self.crashes.labels("trainer_crashed")

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def serve(self, settings: WorkerSettings) -> None:
        """Answer /metrics from a thread for as long as the process lives. Raises OSError where the port is taken."""
        work_dir = Path(settings.work_dir)
        self.disk_free.set_function(lambda: shutil.disk_usage(work_dir).free)
        self.disk_needed.set(settings.min_free_bytes)
        if settings.metrics_port:
            start_http_server(settings.metrics_port, addr=settings.metrics_host, registry=self.registry)

    def crashed(self, code: str) -> None:
        self.crashes.labels(code if code in PROBLEMS else "other").inc()

    def trained(self, point: TrainingPoint) -> None:
        """A point stands for the steps since the last one; its throughput is their mean, in steps per second."""
        if point.throughput > 0:
            self.step_seconds.observe(1 / point.throughput)
        self.tokens_per_s.set(point.tokens_per_s)
        self.gpu_bytes.set(point.vram_gb * _GIB)

    def attempt_ended(self) -> None:
        """An idle slot trains nothing, whatever its last attempt reported."""
        self.busy.set(0)
        self.tokens_per_s.set(0)
        self.gpu_bytes.set(0)
