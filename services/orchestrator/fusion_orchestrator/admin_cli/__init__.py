"""fusion-admin: what an operator does by hand, a module a noun. The work is done elsewhere."""

import typer
from fusion_core import logs

from fusion_orchestrator.admin_cli import accounts, base_models, database, operators, storage

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # locals hold secrets
    help="""Operate a Fusion installation: migrate it, give out keys, import base models, prune storage.

Reads the same settings as the services: FUSION_DATABASE_URL, FUSION_S3_ENDPOINT, FUSION_S3_ACCESS_KEY,
FUSION_S3_SECRET_KEY, FUSION_S3_BUCKET. A new installation needs, in this order: [bold]migrate[/bold],
[bold]accounts create[/bold], [bold]keys create[/bold], [bold]base-models import[/bold].""",
)


@app.callback()
def prepare() -> None:
    """Runs before every command."""
    logs.configure("admin", "auto")


app.command()(database.migrate)
app.command()(storage.prune)
app.command(name="retention")(storage.retain)
app.add_typer(base_models.commands, name="base-models")
app.add_typer(accounts.accounts, name="accounts")
app.add_typer(accounts.keys, name="keys")
app.add_typer(storage.models, name="models")
app.add_typer(operators.commands, name="operators")
