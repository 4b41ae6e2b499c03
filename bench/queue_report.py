"""The figures of `control_plane.py` as tables, and as the plots of docs/scale.md.

    python bench/queue_report.py docs/figures/control_plane.json [docs/scale.md]

Draws control_plane.png beside the figures, and writes those of the page anew.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import msgspec
from matplotlib import pyplot as plt
from queue_capacity import GOAL_OF_ARQ, write_page
from queue_results import Results, Run, Times
from rich.console import Console
from rich.table import Table

mpl.use("Agg")

GOAL_CORES = 0.1
MIB = 2**20


def heartbeat_cores(run: Run) -> float:
    """Cores of Postgres while nothing else happens."""
    return run.cost.cpu_s / run.cost.wall_s


def show(results: Results) -> None:
    console = Console(width=160)
    for make in (_rates, _runs, _memory, _calls, _statements, _sizes):
        if (table := make(results)).row_count:
            console.print(table)
    for line in goals(results):
        console.print(line, markup=False)


def goals(results: Results) -> list[str]:
    """One line a goal: what was measured, beside what."""
    lines = []
    growth, bells = results.runs.get("growth", []), {run.label: run for run in results.runs.get("doorbell", [])}
    if growth:
        best = max(run.jobs_per_s for run in growth)
        for name in ("pgqueuer, one at a time", "pgqueuer"):
            if name in results.contenders:
                share = best / results.contenders[name]
                lines.append(f"claim to complete in SQL: {best:.0f} jobs/s, {share:.2f} of {name}")
        first, last = growth[0], growth[-1]
        ratio = last.cpu_ms_per_job / first.cpu_ms_per_job
        lines.append(f"Postgres CPU a job at {last.label} jobs in the table: {ratio:.2f} of that at {first.label}")
    for label, run in bells.items():
        if "arq" in results.contenders and label != "arrivals":
            share = run.jobs_per_s / results.contenders["arq"]
            lines.append(
                f"by the doorbell ({label}): {run.jobs_per_s:.0f} jobs/s, {share:.2f} of arq, goal {GOAL_OF_ARQ}"
            )
    lines += [
        f"heartbeats of {run.workers:,} workers: {heartbeat_cores(run):.3f} cores of Postgres, goal below {GOAL_CORES}"
        for run in results.runs.get("heartbeats", [])
    ]
    return lines


def _rates(results: Results) -> Table:
    table = Table("no-op jobs", "jobs/s")
    for name, per_s in results.contenders.items():
        table.add_row(name, f"{per_s:,.0f}")
    return table


def _runs(results: Results) -> Table:
    table = Table(
        "", "workers", "jobs/s", "events/s", "heartbeats/s", "by ring", "wait ms: median, p99", "Postgres CPU ms/job",
        "WAL KiB/job", "commits/job", "heap-only updates", "connections",
    )  # fmt: skip
    for part, runs in results.runs.items():
        for run in runs:
            jobs = max(1, run.completed)
            beats = run.cost.updates / run.cost.wall_s if part == "heartbeats" else 0
            table.add_row(
                f"{part} {run.label}",
                f"{run.workers:,}",
                f"{run.jobs_per_s:,.0f}",
                f"{run.events / run.wall_s:,.0f}",
                f"{beats:,.0f}",
                f"{run.rung / max(1, run.claims):.0%}",
                _wait(run.wait),
                f"{run.cpu_ms_per_job:.2f}" if run.completed else f"{heartbeat_cores(run):.3f} cores",
                f"{run.cost.wal_bytes / jobs / 1024:,.1f}" if run.completed else "",
                f"{run.cost.commits / jobs:.1f}" if run.completed else "",
                f"{run.cost.hot_updates / max(1, run.cost.updates):.0%}",
                str(run.cost.connections),
            )
    return table


def _wait(times: Times | None) -> str:
    return f"{times.median:,.0f}, {times.p99:,.0f}" if times else ""


def _memory(results: Results) -> Table:
    table = Table("memory, MiB", "one process of workers", "postgres", "valkey", "orchestrator", "pgbouncer")
    for part, runs in results.runs.items():
        for run in runs[-1:]:
            taken = [run.memory.get(name) for name in ("workers", "postgres", "valkey", "orchestrator", "pgbouncer")]
            table.add_row(f"{part} {run.label}", *("" if one is None else f"{one / MIB:,.0f}" for one in taken))
    return table


def _calls(results: Results) -> Table:
    table = Table("call", "where", "calls", "mean ms", "median", "p99")
    for part, runs in results.runs.items():
        for run in runs[-1:]:
            for name, times in run.calls.items():
                row = (f"{times.count:,}", f"{times.mean:.2f}", f"{times.median:.2f}", f"{times.p99:.2f}")
                table.add_row(name, f"{part} {run.label}", *row)
    return table


def _statements(results: Results) -> Table:
    table = Table("statement", "where", "calls", "ms", "ms/call", "WAL bytes/call")
    for part, runs in results.runs.items():
        for run in runs[-1:]:
            for one in run.cost.statements[:6]:
                row = (f"{one.calls:,}", f"{one.ms:,.0f}", f"{one.ms / one.calls:.3f}")
                table.add_row(one.query[:60], f"{part} {run.label}", *row, f"{one.wal_bytes / one.calls:,.0f}")
    return table


def _sizes(results: Results) -> Table:
    table = Table("table", "rows/job", "bytes/job, indexes included")
    for name, size in results.sizes.items():
        per_job = max(1, results.life_jobs)
        table.add_row(name, f"{size.rows / per_job:.1f}", f"{size.bytes / per_job:,.0f}")
    if results.sizes:
        total = sum(size.bytes for size in results.sizes.values()) / max(1, results.life_jobs)
        table.add_row("together", "", f"{total:,.0f}")
    return table


def draw(results: Results, path: Path) -> None:
    """Jobs a second beside the contenders, and cost a job as the table grows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    growth = results.runs.get("growth", [])
    bars = dict(results.contenders)
    if growth:
        bars["Fusion, SQL"] = max(run.jobs_per_s for run in growth)
    for run in results.runs.get("doorbell", []):
        if run.label != "arrivals":
            bars[f"Fusion, doorbell ({run.label})"] = run.jobs_per_s
    left.barh(list(bars), list(bars.values()), color=["C1" if "Fusion" in name else "C0" for name in bars])
    left.set_xscale("log")
    left.set_xlabel("jobs/s, no-op")
    right.plot([run.rows for run in growth], [run.cpu_ms_per_job for run in growth], marker="o")
    right.set_xscale("log")
    right.set_ylim(bottom=0)
    right.set_xlabel("jobs in the table")
    right.set_ylabel("Postgres CPU, ms a job")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    source = Path(sys.argv[1])
    results = msgspec.json.decode(source.read_bytes(), type=Results)
    draw(results, source.with_suffix(".png"))
    if len(sys.argv) > 2:
        write_page(results, Path(sys.argv[2]))
    show(results)


if __name__ == "__main__":
    main()
