"""The commands of `fusion` about the account: what it may spend, what it used, what jobs cost, and its API keys."""

from typing import Annotated

import typer

from fusion_client.account_models import Account
from fusion_client.terminal import notes, out, session, table, time_text

account_app = typer.Typer()
keys_app = typer.Typer(name="keys", no_args_is_help=True, help="API keys of your account.")
account_app.add_typer(keys_app)

Days = Annotated[int, typer.Option(min=1, max=366, help="How many days back, today included.")]


@account_app.command()
def account(
    spend_limit: Annotated[
        str | None, typer.Option(metavar="USD", help="Refuse jobs that take a month beyond it; none: no limit.")
    ] = None,
    spend_warning: Annotated[
        str | None, typer.Option(metavar="USD", help="Warn from there on; none: never. A key needs the scope billing.")
    ] = None,
) -> None:
    """Show your account and what this month has cost; with a limit or a warning, set it first."""
    given = {"spend_limit_usd": spend_limit, "spend_warning_usd": spend_warning}
    fields = {name: _dollars(said) for name, said in given.items() if said is not None}
    with session() as client:
        _show(client.change_account(**fields) if fields else client.get_account())


def _dollars(said: str) -> float | None:
    try:
        return None if said == "none" else float(said)
    except ValueError as error:
        raise typer.BadParameter(f"{said!r} is neither an amount in dollars nor none") from error


def _show(found: Account) -> None:
    spend = found.spend
    rows = [
        ["id", found.id],
        ["jobs that may run at once", str(found.max_running_jobs)],
        ["billed this month", _usd(spend.billed_usd)],
        ["held for jobs that have not ended", _usd(spend.reserved_usd)],
        ["spend limit a month", "none" if spend.limit_usd is None else _usd(spend.limit_usd)],
        ["warning from", "none" if spend.warning_usd is None else _usd(spend.warning_usd)],
    ]
    table("account", found.name, rows=rows)
    if spend.warning:
        notes.print("this month's spend has reached the warning", style="yellow", highlight=False)


def _usd(amount: float) -> str:
    return f"${amount:,.6f}"


@account_app.command()
def usage(days: Days = 14) -> None:
    """Show what you used on each day, in UTC."""
    with session() as client:
        found = client.get_usage(days)
    rows = [
        [str(day.date), str(day.jobs), f"{day.tokens:,}", f"{day.gpu_minutes:,.2f}", _usd(day.cost_usd)]
        for day in found.buckets
    ]
    total = ["total", str(found.total_jobs), f"{found.total_tokens:,}", f"{found.total_gpu_minutes:,.2f}"]
    table("day", "jobs", "tokens", "GPU minutes", "cost", rows=[*rows, [*total, _usd(found.total_cost_usd)]])


@account_app.command()
def ledger(
    job: Annotated[str | None, typer.Option(help="Only what this job cost.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
) -> None:
    """List what each job that has ended cost, newest first. The key needs the scope billing."""
    with session() as client:
        rows = [
            [line.job_id, line.type, line.status, f"{line.tokens:,}", _usd(line.total_usd), time_text(line.created_at)]
            for line in client.list_ledger(limit, job)
        ]
        table("job", "type", "status", "tokens", "cost", "ended", rows=rows)


@keys_app.command("list")
def list_keys() -> None:
    """List your API keys, newest first, without their secrets."""
    with session() as client:
        rows = [
            [
                key.id,
                key.name,
                key.prefix,
                ", ".join(key.scopes),
                "revoked" if key.revoked else "live",
                time_text(key.last_used_at),
                time_text(key.expires_at),
            ]
            for key in client.list_keys()
        ]
        table("id", "name", "begins with", "scopes", "state", "last used", "expires", rows=rows)


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[
        list[str], typer.Option(help="train, read, datasets, models or billing; repeat it. Only what your key has.")
    ],
) -> None:
    """Make an API key; prints its id and its secret, which is shown this once."""
    with session() as client:
        key = client.create_key(name, scope)
        notes.print("keep the secret: it is not shown again", highlight=False)
        for line in (key.id, key.secret):
            out.print(line, markup=False, highlight=False, soft_wrap=True)


@keys_app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id.")]) -> None:
    """Revoke an API key, effective at once."""
    with session() as client:
        client.revoke_key(key_id)
