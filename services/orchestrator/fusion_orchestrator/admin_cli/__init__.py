"""fusion-admin: what an operator does by hand, a module a noun. The work is done elsewhere."""

from pathlib import Path
from typing import Annotated

import typer
from fusion_core import logs

from fusion_orchestrator.admin_cli import accounts, actions, base_models, database, operators, storage, views
from fusion_orchestrator.admin_cli.admin_http import DEFAULT_URL, Access

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # locals hold secrets
    help="""Operate a Fusion installation: migrate it, give out keys, import base models, prune storage.

Reads the same settings as the services: FUSION_DATABASE_URL, FUSION_S3_ENDPOINT, FUSION_S3_ACCESS_KEY,
FUSION_S3_SECRET_KEY, FUSION_S3_BUCKET. A new installation needs, in this order: [bold]migrate[/bold],
[bold]accounts create[/bold], [bold]keys create[/bold], [bold]base-models import[/bold].

On call, commands ask the orchestrator's admin port instead (FUSION_ADMIN_URL), with the token in FUSION_OPERATOR_TOKEN
or in the file that FUSION_OPERATOR_TOKEN_FILE names; [bold]operators create[/bold] makes one. Begin with
[bold]overview[/bold].""",
)


@app.callback()
def prepare(
    context: typer.Context,
    admin_url: Annotated[
        str, typer.Option(envvar="FUSION_ADMIN_URL", help="The orchestrator's admin port.")
    ] = DEFAULT_URL,
    operator_token: Annotated[
        str | None, typer.Option(envvar="FUSION_OPERATOR_TOKEN", show_default=False, help="Better in the environment.")
    ] = None,
    operator_token_file: Annotated[
        Path | None, typer.Option(envvar="FUSION_OPERATOR_TOKEN_FILE", help="A file that holds the operator token.")
    ] = None,
) -> None:
    """Runs before every command."""
    logs.configure("admin", "auto")
    context.obj = Access(admin_url, operator_token, operator_token_file)


_SETTING_UP = "Setting up"
_LOOKING = "On call: look"
_ACTING = "On call: act"

app.command(rich_help_panel=_SETTING_UP)(database.migrate)
app.command(rich_help_panel=_SETTING_UP)(storage.prune)
app.command(name="retention", rich_help_panel=_SETTING_UP)(storage.retain)
app.add_typer(base_models.commands, name="base-models", rich_help_panel=_SETTING_UP)
app.add_typer(accounts.accounts, name="accounts", rich_help_panel=_SETTING_UP)
app.add_typer(accounts.keys, name="keys", rich_help_panel=_SETTING_UP)
app.add_typer(storage.models, name="models", rich_help_panel=_SETTING_UP)
app.add_typer(operators.commands, name="operators", rich_help_panel=_SETTING_UP)
for look in (
    views.overview,
    views.queues,
    views.jobs,
    views.job,
    views.leases,
    views.workers,
    views.webhooks,
    views.stored,
    views.audit,
):
    app.command(rich_help_panel=_LOOKING)(look)
for deed in (
    actions.drain,
    actions.undrain,
    actions.cordon,
    actions.uncordon,
    actions.pause,
    actions.resume,
    actions.requeue,
    actions.reclaim,
    actions.fail,
    actions.priority,
    actions.deadline,
    actions.replay,
):
    app.command(rich_help_panel=_ACTING)(deed)
