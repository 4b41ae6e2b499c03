"""fusion-admin operators: who may call the admin endpoints. These commands speak to the database itself."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from fusion_core.operator_tokens import ROLES, Role
from rich.table import Table

from fusion_orchestrator import operators as tokens
from fusion_orchestrator.admin_cli.running import connected, err, out, run, settings
from fusion_orchestrator.admin_cli.who import Actor, Why, named, setting_up

commands = typer.Typer(no_args_is_help=True, help="Operator tokens, with which people on call use the admin endpoints.")


@commands.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose it is: the audit log names this. One live token a name.")],
    role: Annotated[Role, typer.Option(help=f"One of {', '.join(ROLES)}: viewers look, operators act, too.")],
    reason: Why = None,
    actor: Actor = None,
) -> None:
    """Create an operator token and print its secret.

    The secret is shown this once and stored only as a hash: keep it now, and put it into FUSION_OPERATOR_TOKEN.
    """

    by = setting_up(actor, reason)

    async def work() -> tokens.NewToken:
        async with connected(settings()) as connection:
            return await tokens.create_token(connection, by, name, role)

    token = run(work())
    err.print(f"operator token {token.id} with the role {token.role}; the secret, shown once:")
    out.print(token.secret)


@commands.command("list")
def show() -> None:
    """List operator tokens, the newest first; revoked ones too."""

    async def work() -> list[Any]:
        async with connected(settings()) as connection:
            return await tokens.list_tokens(connection)

    table = Table("id", "name", "role", "begins with", "created", "last used", "revoked", box=None)
    for row in run(work()):
        times = (_time(row[name]) for name in ("created_at", "last_used_at", "revoked_at"))
        table.add_row(str(row["id"]), row["name"], row["role"], row["prefix"], *times)
    out.print(table)


@commands.command("revoke")
def revoke(
    token_id: Annotated[UUID, typer.Argument(metavar="ID", help="From `operators list`.")],
    reason: Why = None,
    actor: Actor = None,
) -> None:
    """Revoke an operator token. The next request with it is refused already."""

    by = named(actor, reason)

    async def work() -> Any:
        async with connected(settings()) as connection:
            return await tokens.revoke_token(connection, by, token_id)

    row = run(work())
    out.print(f"operator token {row['id']} ({row['name']}) is revoked")


def _time(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
