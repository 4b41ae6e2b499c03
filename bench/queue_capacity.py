"""What one Postgres carries, worked out from the figures of `control_plane.py`, as the tables of docs/scale.md."""

import re
import textwrap
from pathlib import Path

from queue_notify import FLUSH_US
from queue_results import Results, Run

HEARTBEAT_S = 5.0
REPORT_S = 1.0  # at most one batch of events a second, `metrics_every_s` of the trainer's protocol
GOAL_OF_ARQ = 0.8
SHARE = 0.5  # of a core is planned for: the rest is for peaks, vacuum and reads
DAY_S = 86_400
GB = 1e9
_MARKED = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


class Costs:
    """CPU of Postgres in milliseconds and bytes on disk, of one of each. Everything a worker does is made of these."""

    def __init__(self, results: Results) -> None:
        noop, life, held = results.runs["growth"][-1], results.runs["life"][-1], results.runs["heartbeats"][-1]
        self.noop = noop.cpu_ms_per_job
        self.life = life.cpu_ms_per_job
        self.heartbeat = 1000 * held.cost.cpu_s / max(1, held.cost.updates)
        # a job's events come in two batches; its one checkpoint counts as a third, its heartbeats by their number
        beats = life.heartbeats * self.heartbeat / life.completed
        self.batch = max(0.0, self.life - self.noop - beats) / 3
        events, points = results.sizes["job_events"], results.sizes["job_metrics"]
        self.point_bytes = events.bytes / events.rows + points.bytes / points.rows
        fixed = [size.bytes for name, size in results.sizes.items() if name not in ("job_events", "job_metrics")]
        self.job_bytes = sum(fixed) / results.life_jobs + 5 * events.bytes / events.rows

    @property
    def busy_worker_ms_per_s(self) -> float:
        """A worker that trains and reports as often as it may."""
        return self.heartbeat / HEARTBEAT_S + self.batch / REPORT_S


def page(results: Results) -> str:
    """The part of docs/scale.md between its marks."""
    costs = Costs(results)
    day = DAY_S * SHARE
    point_gb = costs.point_bytes * DAY_S / REPORT_S / GB
    machine = f"{results.machine['cores']} cores, load {results.machine['load_before']:.1f} before the run"
    lines = [
        f"Measured on {results.date}: {machine}; {'through PgBouncer' if results.plan.pooler else 'without a pooler'}.",
        "",
        *_measured(results),
        "",
        "![jobs a second, and what a job costs as the table grows](figures/control_plane.png)",
        "",
        "| of one Postgres | costs | so half a core carries |",
        "|---|---|---|",
        f"| a job, claim to complete | {costs.noop:.2f} ms CPU | {day * 1000 / costs.noop:,.0f} a day |",
        f"| a job with 20 events, 10 points and a checkpoint | {costs.life:.2f} ms CPU |"
        f" {day * 1000 / costs.life:,.0f} a day |",
        f"| a heartbeat | {costs.heartbeat:.2f} ms CPU | {1000 * SHARE * HEARTBEAT_S / costs.heartbeat:,.0f} workers |",
        f"| a batch of events | {costs.batch:.2f} ms CPU | {1000 * SHARE / costs.batch:,.0f} a second |",
        f"| a worker that trains and reports every second | {costs.busy_worker_ms_per_s:.2f} ms CPU a second |"
        f" {1000 * SHARE / costs.busy_worker_ms_per_s:,.0f} workers |",
        "",
        "| on disk, indexes included | takes |",
        "|---|---|",
        f"| a job without its events and points | {costs.job_bytes / 1000:.1f} kB |",
        f"| a point of the training curve, as event and as metric | {costs.point_bytes:.0f} bytes |",
        f"| a worker that reports every second, a day | {point_gb * 1000:.0f} MB |",
        f"| 1,000 such workers, a month | {point_gb * 30:,.1f} TB |",
        *_commits(results),
        *_beside(results),
    ]
    return "\n".join(lines)


def _commits(results: Results) -> list[str]:
    if not results.commits:
        return []
    plain, notifying = results.commits["plain"], results.commits["notifying"]
    return [
        "",
        f"With {FLUSH_US / 1000:.0f} ms added to each flush, {plain:,.0f} commits a second without a notification and"
        f" {notifying:,.0f} with one: {plain / notifying:.1f} times.",
    ]


def _beside(results: Results) -> list[str]:
    """The rates as shares of the others' in the same run, and how near to arq's the doorbell can come."""
    arq, single = results.contenders["arq"], results.contenders["pgqueuer, one at a time"]
    sql = max(run.jobs_per_s for run in results.runs["growth"])
    arq_ms, sql_ms = 1000 / arq, 1000 / sql
    both = 1000 / (arq_ms + sql_ms)
    bells = [run for run in results.runs["doorbell"] if run.label != "arrivals"]
    shares = " and ".join(f"{run.jobs_per_s / arq:.2f} ({run.label})" for run in bells)
    rates = (
        f"Claim to complete in SQL is {sql / single:.2f} of pgqueuer one at a time; by the doorbell it is {shares}"
        " of arq."
    )
    why = (
        f"**Why not {GOAL_OF_ARQ} of arq.** These cores are done with a no-op job of arq after {arq_ms:.2f} ms, with a"
        f" claim and a completion of Fusion after {sql_ms:.2f} ms. A job that is rung for takes both: at most"
        f" {both:,.0f} a second, {both / arq:.2f} of arq, if ringing cost nothing. A daemon that finds its next job by"
        f" looking needs no ring: at most {sql:,.0f}, {sql / arq:.2f} of arq. {GOAL_OF_ARQ} of arq would leave"
        f" {arq_ms / GOAL_OF_ARQ:.2f} ms for everything, and two durable transactions alone take"
        f" {sql_ms * GOAL_OF_ARQ / arq_ms:.1f} times that; arq writes to memory and forgets the job."
    )
    return ["", *textwrap.wrap(rates, 120), "", *textwrap.wrap(why, 120)]


def _measured(results: Results) -> list[str]:
    lines = ["| | jobs/s | Postgres CPU, ms a job | submit to claim, ms: median, p99 |", "|---|---|---|---|"]
    lines += [f"| {name}, no-op | {per_s:,.0f} | | |" for name, per_s in results.contenders.items()]
    names = {
        "growth": "claim to complete in SQL, {} jobs in the table",
        "doorbell": "by the doorbell: {}",
        "life": "whole jobs, {}",
    }
    for part, form in names.items():
        for run in results.runs.get(part, []):
            lines.append(f"| {form.format(run.label)}, {run.workers:,} workers | {_figures(run, part)} |")
    for run in results.runs["heartbeats"]:
        cores = run.cost.cpu_s / run.cost.wall_s
        hot = run.cost.hot_updates / max(1, run.cost.updates)
        lines.append(
            f"| heartbeats of {run.workers:,} workers: {run.cost.updates / run.cost.wall_s:,.0f} a second, {hot:.0%}"
            f" heap-only | | {cores:.3f} cores | |"
        )
    return lines


def _figures(run: Run, part: str) -> str:
    waits = part == "doorbell" and run.label == "arrivals" and run.wait is not None
    wait = f"{run.wait.median:,.0f}, {run.wait.p99:,.0f}" if waits and run.wait else ""
    return f"{run.jobs_per_s:,.0f} | {run.cpu_ms_per_job:.2f} | {wait}"


def write_page(results: Results, path: Path) -> None:
    """Raises ValueError where the page has no marks."""
    text = path.read_text()
    if not _MARKED.search(text):
        raise ValueError(f"{path} has no <!-- figures --> and <!-- end of figures -->")
    figures = page(results)
    path.write_text(_MARKED.sub(lambda found: f"{found[1]}{figures}\n{found[2]}", text))
