"""fusion-admin overview, jobs, workers, queues, audit and so on: what there is to see. A viewer's token is enough."""

from typing import Annotated

import typer
from fusion_core.states import State

from fusion_orchestrator.admin_cli.admin_http import After, AsJson, Limit, get, show_fields, show_table

Pool = Annotated[str | None, typer.Option(help="Only those of this pool.")]


def overview(context: typer.Context, as_json: AsJson = False) -> None:
    """How everything is: jobs and workers by state, what is held back, what may be wrong.

    Next: [bold]fusion-admin queues[/bold], [bold]fusion-admin jobs --state queued[/bold]
    """
    show_fields(get(context, "/overview"), as_json=as_json)


def jobs(
    context: typer.Context,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    pool: Pool = None,
    account: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this account.")] = None,
    limit: Limit = 50,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List jobs of every account, the newest first, with all that keeps each queued one waiting.

    Next: [bold]fusion-admin job ID[/bold]
    """
    rows = get(context, "/jobs", state=state, pool=pool, account=account, limit=limit, after=after)
    columns = ("id", "state", "waits_for", "type", "pool", "priority", "account_name", "retries", "created_at")
    show_table(rows, columns, as_json=as_json)


def job(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID", help="From `fusion-admin jobs`.")],
    as_json: AsJson = False,
) -> None:
    """Show a job: its lease, its attempts, its last events, its checkpoints."""
    found = get(context, f"/jobs/{job_id}")
    lists = {name: found[name] for name in ("attempts", "events", "checkpoints")}
    show_fields(found if as_json else {k: v for k, v in found.items() if k not in {"spec", *lists}}, as_json=as_json)
    if not as_json:
        show_table(lists["events"], ("seq", "type", "created_at", "data"), as_json=False)
        show_table(lists["checkpoints"], ("step", "state", "bytes", "created_at"), as_json=False)


def workers(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="idle, busy, draining or gone.")] = None,
    pool: Pool = None,
    limit: Limit = 50,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List workers with pool, GPUs, version, state and job."""
    rows = get(context, "/workers", state=state, pool=pool, limit=limit, after=after)
    columns = ("id", "name", "pool", "state", "gpu_class", "gpus", "version", "job_id", "failures", "drain_reason",
               "seen_at")  # fmt: skip
    show_table(rows, columns, as_json=as_json)


def leases(
    context: typer.Context, pool: Pool = None, limit: Limit = 50, after: After = None, as_json: AsJson = False
) -> None:
    """List who holds which running job, for how long (seconds) and until when."""
    rows = get(context, "/leases", pool=pool, limit=limit, after=after)
    columns = ("id", "pool", "phase", "worker_name", "worker_id", "age_s", "lease_expires_at", "expired")
    show_table(rows, columns, as_json=as_json)


def webhooks(context: typer.Context, limit: Limit = 50, after: After = None, as_json: AsJson = False) -> None:
    """List webhook endpoints with deliveries that wait or have failed.

    Next: [bold]fusion-admin replay ID[/bold]
    """
    rows = get(context, "/webhooks", limit=limit, after=after)
    columns = ("id", "account_id", "host", "enabled", "pending", "failed", "oldest_due_at", "failing_since")
    show_table(rows, columns, as_json=as_json)


def stored(context: typer.Context, as_json: AsJson = False) -> None:
    """Show bytes and counts by kind, as rows name them; `fusion-admin prune` is for what no row names."""
    show_table(get(context, "/storage"), ("kind", "items", "bytes"), as_json=as_json)


def queues(context: typer.Context, as_json: AsJson = False) -> None:
    """List pools: how much waits and how long, who serves, how long a job submitted now would wait (seconds)."""
    columns = ("name", "queued", "claimable", "held", "running", "oldest_age_s", "idle", "busy", "draining",
               "demand", "expected_wait_s", "cordon_reason")  # fmt: skip
    show_table(get(context, "/queues"), columns, as_json=as_json)


def audit(
    context: typer.Context,
    actor: Annotated[str | None, typer.Option(help="Only what this operator did.")] = None,
    target: Annotated[str | None, typer.Option(help="Only what was done to this id or name.")] = None,
    limit: Limit = 50,
    after: After = None,
    as_json: AsJson = False,
) -> None:
    """List who did what to which thing and why, the newest first."""
    rows = get(context, "/audit", actor=actor, target=target, limit=limit, after=after)
    show_table(rows, ("created_at", "actor", "action", "target_type", "target", "reason"), as_json=as_json)
