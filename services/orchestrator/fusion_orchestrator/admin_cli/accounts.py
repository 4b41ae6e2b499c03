"""fusion-admin accounts and fusion-admin keys."""

from typing import Annotated
from uuid import UUID

import msgspec
import typer
from fusion_core.api_keys import SCOPES
from fusion_core.db.account_deletion import Contents, close_account, read_contents
from fusion_core.settings import CommonSettings

from fusion_orchestrator import accounts as account_rows
from fusion_orchestrator.admin_cli.running import connected, err, out, run, settings

accounts = typer.Typer(no_args_is_help=True, help="Accounts own every job, dataset and model.")
keys = typer.Typer(no_args_is_help=True, help="API keys, with which an account calls the API.")


@accounts.command("create")
def create_account(
    name: Annotated[str, typer.Argument(help="What you call the customer, up to 200 characters.")],
) -> None:
    """Create an account and print its id.

    Next: [bold]fusion-admin keys create ID[/bold]
    """
    account_id = run(account_rows.create_account(settings().direct_url, name))
    out.print(str(account_id))


@accounts.command("delete")
def delete_account(
    account: Annotated[UUID, typer.Argument(help="The account's id.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit log.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be deleted.")] = False,
) -> None:
    """Delete an account with everything it has. This cannot be undone.

    At once its keys stop working, its webhooks are gone and its jobs are cancelled. The orchestrator deletes its rows
    within an hour after its last job has ended, and its objects a day later. A line a job stays: ids and amounts.
    """
    contents = run(_delete_account(settings(), account, reason, dry_run=dry_run))
    for field, number in msgspec.structs.asdict(contents).items():
        out.print(f"{field.replace('_', ' '):20} {number}")
    err.print("nothing was changed" if dry_run else "the account is closed; retention deletes its rows")


async def _delete_account(common: CommonSettings, account: UUID, reason: str, *, dry_run: bool) -> Contents:
    async with connected(common) as conn:
        if dry_run:
            return await read_contents(conn, account)
        return await close_account(conn, account, "fusion-admin", reason)


@keys.command("create")
def create_key(
    account: Annotated[UUID, typer.Argument(help="The account's id, from `accounts create`.")],
    scopes: Annotated[str, typer.Option(help=f"Comma-separated, out of: {', '.join(SCOPES)}.")] = ",".join(SCOPES),
    name: Annotated[str, typer.Option(help="What the key is for; shown in lists.")] = "created by the operator",
) -> None:
    """Create an API key and print its secret.

    The secret is shown this once and stored only as a hash: keep it now. Only the secret goes to stdout.
    """
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    key = run(account_rows.create_key(settings().direct_url, account, name, wanted))
    err.print(f"key {key.id} with scopes {', '.join(key.scopes)}; the secret, shown once:")
    out.print(key.secret)
