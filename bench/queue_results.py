"""The figures of `control_plane.py`, as it writes them and its report reads them."""

import statistics
from typing import Any, Self

import msgspec
from queue_contenders import Drained
from queue_fleet import Report
from queue_stack import Cost
from queue_world import Size


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything. `workers` and `jobs` are those of scale 1; times in seconds."""

    workers: int = 100
    jobs: int = 10_000
    scales: tuple[int, ...] = (1, 10)
    rows: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    sample: int = 6_000
    contender_jobs: int = 10_000
    rings: int = 2_000
    events: int = 20
    arrivals: int = 500
    arrivals_per_s: float = 25.0
    seconds: float = 30.0
    seed: int = 0
    pooler: bool = False
    parts: tuple[str, ...] = ("contenders", "notify", "growth", "doorbell", "life", "heartbeats")


QUICK: dict[str, Any] = {
    "jobs": 300,
    "rows": (1_000, 100_000),
    "sample": 2_000,
    "contender_jobs": 2_000,
    "rings": 300,
    "arrivals": 150,
    "seconds": 10.0,
}


class Times(msgspec.Struct, frozen=True):
    """Of `count` calls or waits, in milliseconds."""

    count: int
    mean: float
    median: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> Self | None:
        if len(seconds) < 2:
            return None
        cuts = statistics.quantiles(seconds, n=100, method="inclusive")
        return cls(len(seconds), 1000 * statistics.fmean(seconds), 1000 * cuts[49], 1000 * cuts[98])


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One measured piece of work: what the workers did, and what it cost Postgres.

    `lost` are leases that ran out, `rows` is how many jobs the table had, `rung` how many claims were made by the
    doorbell; memory is in bytes, of one process or of one store with all its processes.
    """

    label: str
    workers: int
    rows: int
    wall_s: float
    completed: int
    rung: int
    claims: int
    events: int
    heartbeats: int
    lost: int
    wait: Times | None
    calls: dict[str, Times]
    cost: Cost
    memory: dict[str, int]

    @property
    def jobs_per_s(self) -> float:
        return self.completed / self.wall_s

    @property
    def cpu_ms_per_job(self) -> float:
        return 1000 * self.cost.cpu_s / max(1, self.completed)

    @classmethod
    def of(cls, label: str, workers: int, rows: int, reports: list[Report], cost: Cost, memory: dict[str, int]) -> Self:
        """The workers of all processes as one, from the first process' start to the last one's end."""
        totals = {
            name: sum(getattr(one, name) for one in reports)
            for name in ("completed", "rung", "claims", "events", "heartbeats", "lost")
        }
        names = {name for one in reports for name in one.calls}
        calls = {
            name: Times.of([took for one in reports for took in one.calls.get(name, [])]) for name in sorted(names)
        }
        return cls(
            label=label,
            workers=workers,
            rows=rows,
            wall_s=max(one.ended for one in reports) - min(one.began for one in reports),
            wait=Times.of([wait for one in reports for wait in one.waits]),
            calls={name: times for name, times in calls.items() if times is not None},
            cost=cost,
            memory=memory,
            **totals,
        )


class Results(msgspec.Struct, kw_only=True):
    """Everything. `contenders`: jobs/s; `commits`: a second, plain and notifying; `sizes`: of the database of the last
    run of `life`, which had `life_jobs`."""

    plan: Plan
    machine: dict[str, Any]
    date: str
    contenders: dict[str, float] = {}
    commits: dict[str, float] = {}
    runs: dict[str, list[Run]] = {}
    sizes: dict[str, Size] = {}
    life_jobs: int = 0


def drained_per_s(drained: list[Drained]) -> float:
    """Jobs a second, from the first one executed to the last."""
    busy = [one for one in drained if one.executed]
    return sum(one.executed for one in busy) / (max(one.ended for one in busy) - min(one.began for one in busy))
