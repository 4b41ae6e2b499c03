"""Counts what happens to jobs: each event passes the outbox once, so one replica counts it, and no table is read.

A replica that dies between the outbox and the count loses a few: these are rates to watch, the ledger is the truth.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from fusion_core.problems import PROBLEMS

from fusion_orchestrator.metrics import Metrics

_TERMINAL = frozenset({"completed", "failed", "cancelled"})


def count_events(metrics: Metrics, events: Iterable[Mapping[str, Any]]) -> None:
    """Rows of `take_outbox`."""
    for event in events:
        kind = event["event_type"]
        if kind == "claimed":
            _count_claim(metrics, event)
        elif kind == "interrupted":
            metrics.interruptions.labels(event["data"]["reason"], _code(event["data"])).inc()
        elif kind == "quarantined":
            metrics.quarantines.inc()
        elif kind in _TERMINAL:
            metrics.ended.labels(event["job_type"], kind, _code(event["data"])).inc()
            _count_bill(metrics, event)


def _count_claim(metrics: Metrics, event: Mapping[str, Any]) -> None:
    metrics.claims.labels(event["pool"], event["job_type"]).inc()
    if event["data"]["attempt"] == 1:
        waited = event["occurred_at"] - event["submitted_at"]
        metrics.claim_latency.labels(event["pool"]).observe(max(0.0, waited.total_seconds()))


def _count_bill(metrics: Metrics, event: Mapping[str, Any]) -> None:
    """A priced job has one entry from its end on, and one that completed pays its estimate to the micro-dollar."""
    billed, estimate = event["amount_microusd"], event["reserved_microusd"]
    if estimate is None:
        return
    if billed is None or (event["event_type"] == "completed" and billed != estimate):
        metrics.ledger_faults.inc()
    metrics.billed.labels(event["job_type"]).inc(billed or 0)


def _code(data: Mapping[str, Any]) -> str:
    """Of the closed registry: what a row of an older or newer release says is `other`."""
    code = data.get("code")
    return "none" if code is None else code if code in PROBLEMS else "other"
