"""fusion-admin accounts and fusion-admin keys."""

from typing import Annotated
from uuid import UUID

import msgspec
import typer
from fusion_core.api_keys import SCOPES
from fusion_core.db.account_deletion import Contents, close_account, read_contents
from fusion_core.db.audit import By
from fusion_core.settings import CommonSettings

from fusion_orchestrator import accounts as account_rows
from fusion_orchestrator.admin_cli.running import connected, err, out, run, settings
from fusion_orchestrator.admin_cli.who import Actor, Why, named, setting_up

accounts = typer.Typer(no_args_is_help=True, help="Accounts own every job, dataset and model.")
keys = typer.Typer(no_args_is_help=True, help="API keys, with which an account calls the API.")


@accounts.command("create")
def create_account(
    name: Annotated[str, typer.Argument(help="What you call the customer, up to 200 characters.")],
    reason: Why = None,
    actor: Actor = None,
) -> None:
    """Create an account and print its id.

    Next: [bold]fusion-admin keys create ID[/bold]
    """
    by = setting_up(actor, reason)

    async def work() -> UUID:
        async with connected(settings()) as conn:
            return await account_rows.create_account(conn, by, name)

    out.print(str(run(work())))


@accounts.command("delete")
def delete_account(
    account: Annotated[UUID, typer.Argument(help="The account's id.")],
    reason: Why = None,
    actor: Actor = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be deleted.")] = False,
) -> None:
    """Delete an account with everything it has. This cannot be undone.

    At once its keys stop working, its webhooks are gone and its jobs are cancelled. The orchestrator deletes its rows
    within an hour after its last job has ended, and its objects a day later. A line a job stays: ids and amounts.
    """
    contents = run(_delete_account(settings(), account, None if dry_run else named(actor, reason)))
    for field, number in msgspec.structs.asdict(contents).items():
        out.print(f"{field.replace('_', ' '):20} {number}")
    err.print("nothing was changed" if dry_run else "the account is closed; retention deletes its rows")


async def _delete_account(common: CommonSettings, account: UUID, by: By | None) -> Contents:
    """By nobody, it is only counted."""
    async with connected(common) as conn:
        return await (read_contents(conn, account) if by is None else close_account(conn, account, by))


@keys.command("create")
def create_key(
    account: Annotated[UUID, typer.Argument(help="The account's id, from `accounts create`.")],
    scopes: Annotated[str, typer.Option(help=f"Comma-separated, out of: {', '.join(SCOPES)}.")] = ",".join(SCOPES),
    name: Annotated[str, typer.Option(help="What the key is for; shown in lists.")] = "created by the operator",
    reason: Why = None,
    actor: Actor = None,
) -> None:
    """Create an API key and print its secret.

    The secret is shown this once and stored only as a hash: keep it now. Only the secret goes to stdout.
    """
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    by = setting_up(actor, reason)

    async def work() -> account_rows.NewKey:
        async with connected(settings()) as conn:
            return await account_rows.create_key(conn, by, account, name, wanted)

    key = run(work())
    err.print(f"key {key.id} with scopes {', '.join(key.scopes)}; the secret, shown once:")
    out.print(key.secret)
