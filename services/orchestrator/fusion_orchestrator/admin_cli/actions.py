"""fusion-admin drain, pause, requeue and so on. Each needs an operator's token and a reason, and may be repeated."""

from typing import Annotated
from urllib.parse import quote
from uuid import UUID

import typer

from fusion_orchestrator.admin_cli.admin_http import AsJson, Reason, act

Worker = Annotated[UUID, typer.Argument(metavar="WORKER", help="Its id, from `fusion-admin workers`.")]
Job = Annotated[UUID, typer.Argument(metavar="JOB", help="Its id, from `fusion-admin jobs`.")]
PoolName = Annotated[str, typer.Argument(metavar="POOL", help="Its name, from `fusion-admin queues`.")]
OfPool = Annotated[str | None, typer.Option("--pool", help="A pool's name.")]
OfAccount = Annotated[UUID | None, typer.Option("--account", help="An account's id.")]


def drain(context: typer.Context, worker: Worker, reason: Reason, as_json: AsJson = False) -> None:
    """Empty a worker: its job goes back at a checkpoint, which costs no retry, and it claims none until undrained."""
    act(context, f"/workers/{worker}/drain", reason, as_json=as_json)


def undrain(context: typer.Context, worker: Worker, reason: Reason, as_json: AsJson = False) -> None:
    """Let a drained worker claim again."""
    act(context, f"/workers/{worker}/undrain", reason, as_json=as_json)


def cordon(context: typer.Context, pool: PoolName, reason: Reason, as_json: AsJson = False) -> None:
    """Claim nothing more in a pool. What runs there goes on."""
    act(context, f"/pools/{quote(pool, safe='')}/cordon", reason, as_json=as_json)


def uncordon(context: typer.Context, pool: PoolName, reason: Reason, as_json: AsJson = False) -> None:
    """Claim in a pool again."""
    act(context, f"/pools/{quote(pool, safe='')}/uncordon", reason, as_json=as_json)


def pause(
    context: typer.Context, reason: Reason, pool: OfPool = None, account: OfAccount = None, as_json: AsJson = False
) -> None:
    """Start no more jobs of a pool, of an account, or of an account in a pool. What runs goes on; new jobs wait."""
    act(context, "/dispatch/pause", reason, as_json=as_json, **_where(pool, account))


def resume(
    context: typer.Context, reason: Reason, pool: OfPool = None, account: OfAccount = None, as_json: AsJson = False
) -> None:
    """End the pause of just this pool and account; `fusion-admin overview` lists all pauses."""
    act(context, "/dispatch/resume", reason, as_json=as_json, **_where(pool, account))


def requeue(context: typer.Context, job: Job, reason: Reason, as_json: AsJson = False) -> None:
    """Give a job back to its queue, claimable at once.

    A running one goes on elsewhere from its last checkpoint and its worker loses its lease; a quarantine ends.
    """
    act(context, f"/jobs/{job}/requeue", reason, as_json=as_json)


def reclaim(
    context: typer.Context,
    job: Job,
    reason: Reason,
    force: Annotated[bool, typer.Option("--force", help="Although its worker still renews the lease.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take an expired lease back now, as the sweep would; it counts as a lost worker."""
    act(context, f"/jobs/{job}/reclaim", reason, as_json=as_json, force=force)


def fail(context: typer.Context, job: Job, reason: Reason, as_json: AsJson = False) -> None:
    """End a job as failed. Its customer reads the reason and pays nothing. This cannot be undone."""
    act(context, f"/jobs/{job}/fail", reason, as_json=as_json)


def priority(
    context: typer.Context,
    job: Job,
    value: Annotated[int, typer.Argument(metavar="PRIORITY", min=-1000, max=1000, help="Higher goes first.")],
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Change where a job stands in its queue. Put -- before a negative number."""
    act(context, f"/jobs/{job}/priority", reason, as_json=as_json, priority=value)


def deadline(
    context: typer.Context,
    job: Job,
    at: Annotated[str, typer.Argument(metavar="TIME|none", help="As in 2026-12-24T18:00:00Z.")],
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Say when a job fails unless it has ended by then; `none`: never."""
    act(context, f"/jobs/{job}/deadline", reason, as_json=as_json, deadline_at=None if at == "none" else at)


def replay(
    context: typer.Context,
    webhook: Annotated[UUID, typer.Argument(metavar="WEBHOOK", help="Its id, from `fusion-admin webhooks`.")],
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Send again what failed or was cancelled at a webhook, the oldest thousand at a time."""
    act(context, "/webhooks/replay", reason, as_json=as_json, webhook_id=str(webhook))


def _where(pool: str | None, account: UUID | None) -> dict[str, str]:
    named = {"pool": pool, "account_id": None if account is None else str(account)}
    return {name: value for name, value in named.items() if value is not None}
