"""fusion-admin: what an operator does by hand. Each command is one function; the work is done elsewhere."""

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar
from uuid import UUID

import asyncpg
import msgspec
import typer
from botocore.exceptions import BotoCoreError, ClientError
from fusion_core import logs
from fusion_core.api_keys import SCOPES
from fusion_core.db import migrate as migrations
from fusion_core.db.account_deletion import Contents, UnknownAccountError, close_account, read_contents
from fusion_core.db.pool import POSTGRES_AWAY, OwnConnection, Pool, connect, connect_pool, queries
from fusion_core.settings import CommonSettings, SettingsError, SettingsT, load
from fusion_core.storage import Storage
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from fusion_orchestrator import accounts as account_rows
from fusion_orchestrator import retention
from fusion_orchestrator.base_model_import import Imported, Progress, import_base_model
from fusion_orchestrator.model_folder import BaseModelRejectedError, ModelFolder, verify_model_folder
from fusion_orchestrator.prune import Pruner, PruneReport
from fusion_orchestrator.rehearsal import RehearsalError, check_rehearsal
from fusion_orchestrator.settings import RetentionSettings

T = TypeVar("T")

_EXPECTED_ERRORS = (
    SettingsError,
    account_rows.AccountError,
    UnknownAccountError,
    migrations.MigrationChangedError,
    *POSTGRES_AWAY,
    asyncpg.PostgresError,
    BotoCoreError,
    ClientError,
)

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
base_models = typer.Typer(no_args_is_help=True, help="The catalog of models that customers can grow.")
accounts = typer.Typer(no_args_is_help=True, help="Accounts own every job, dataset and model.")
keys = typer.Typer(no_args_is_help=True, help="API keys, with which an account calls the API.")
app.add_typer(base_models, name="base-models")
app.add_typer(accounts, name="accounts")
app.add_typer(keys, name="keys")
models = typer.Typer(no_args_is_help=True, help="Models that customers have made.")
app.add_typer(models, name="models")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@app.callback()
def prepare() -> None:
    """Runs before every command."""
    logs.configure("admin", "auto")


@app.command()
def migrate() -> None:
    """Bring the database schema up to date.

    Safe to repeat, and safe to run from several machines at once: one of them works, the others wait.
    """
    applied = _run(migrations.migrate(_settings().database_url))
    out.print(f"applied: {', '.join(applied)}" if applied else "the schema is up to date")


@accounts.command("create")
def create_account(
    name: Annotated[str, typer.Argument(help="What you call the customer, up to 200 characters.")],
) -> None:
    """Create an account and print its id.

    Next: [bold]fusion-admin keys create ID[/bold]
    """
    account_id = _run(account_rows.create_account(_settings().database_url, name))
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
    contents = _run(_delete_account(_settings(), account, reason, dry_run=dry_run))
    for field, number in msgspec.structs.asdict(contents).items():
        out.print(f"{field.replace('_', ' '):20} {number}")
    err.print("nothing was changed" if dry_run else "the account is closed; retention deletes its rows")


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
    key = _run(account_rows.create_key(_settings().database_url, account, name, wanted))
    err.print(f"key {key.id} with scopes {', '.join(key.scopes)}; the secret, shown once:")
    out.print(key.secret)


@base_models.command("import")
def import_base(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face model folder. It is only read.")],
    rehearsal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='JSON lines {"text": ...} of what the model was trained on. A tenth of each job\'s rows comes from '
            "it, which keeps a grown model from forgetting.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the catalog; the folder's name unless given.")] = None,
    version: Annotated[str | None, typer.Option(help="Version in the catalog; the precision unless given.")] = None,
) -> None:
    """Import a base model into the catalog and print its id.

    First the folder is verified without loading anything: config, architecture, every shard's header, the parameter
    count, the tokenizer. Every fault is named at once. Then the files are hashed and uploaded, and the catalog gets
    its entry last, so that a base model is there completely or not at all. Importing the same content again answers
    the entry that exists.
    """
    try:
        verified = verify_model_folder(folder)
        rows = check_rehearsal(rehearsal) if rehearsal else 0
    except (BaseModelRejectedError, RehearsalError, OSError) as error:
        _fail(f"{folder} cannot be imported:\n{error}")
    name, version = (
        _label("name", name or folder.resolve().name, 200),
        _label("version", version or verified.precision, 64),
    )
    err.print(
        f"verified: {verified.family}, {verified.params:,} parameters, {verified.precision}, {rows} rehearsal rows"
    )
    if verified.skipped:
        err.print(f"not imported: {', '.join(verified.skipped)}")
    with _progress() as progress:
        imported = _run(_import(_settings(), verified, name, version, rehearsal, progress))
    existed = "" if imported.created else " (the same content was imported before; nothing was changed)"
    err.print(f"base model {imported.name} {imported.version}{existed}")
    out.print(str(imported.id))


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    min_age_hours: Annotated[float, typer.Option(min=1, help="Younger objects are kept.")] = 24,
) -> None:
    """Delete objects that no row names: what dead attempts, broken imports and expired uploads left behind.

    The orchestrator does this every hour by itself. Objects that belong to a job which this database does not know
    are never touched, and counted as unknown.
    """
    report = _run(_prune(_settings(), timedelta(hours=min_age_hours), dry_run))
    for field, count in msgspec.structs.asdict(report).items():
        out.print(f"{field.replace('_', ' '):20} {count}")


@app.command(name="retention")
def retain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be taken away.")] = False,
) -> None:
    """Take away what is older than its period: superseded checkpoints, old events, expired models and uploads.

    The orchestrator does this every hour by itself, with the periods of its own settings; here they come from the same
    FUSION_* variables. The objects that nothing names afterwards go with `prune`.
    """
    settings = _settings(RetentionSettings)
    due = _run(_retain(settings, dry_run=dry_run))
    periods = {rule.name: rule.period for rule in retention.rules(settings)}
    for name, rows in due.items():
        out.print(f"{name:28} {rows:>9}  {periods.get(name, 'when their last job has ended')}")


@models.command("restore")
def restore_model(
    model: Annotated[UUID, typer.Argument(help="The id of a model that its customer has deleted.")],
) -> None:
    """Undo the deletion of a model, within FUSION_DELETED_MODEL_DAYS of it."""
    settings = _settings(RetentionSettings)
    row = _run(_restore(settings, model))
    if row is None:
        _fail(f"{model} was not deleted in the last {settings.deleted_model_days} days; its files may be gone")
    out.print(f"{row['name']} v{row['version']} is back")


async def _delete_account(settings: CommonSettings, account: UUID, reason: str, *, dry_run: bool) -> Contents:
    async with _connection(settings) as conn:
        if dry_run:
            return await read_contents(conn, account)
        return await close_account(conn, account, "fusion-admin", reason)


async def _retain(settings: RetentionSettings, *, dry_run: bool) -> dict[str, int]:
    async with _connection(settings) as conn:
        return await (retention.count if dry_run else retention.enforce)(conn, settings)


async def _restore(settings: RetentionSettings, model: UUID) -> Any:
    async with _connection(settings) as conn:
        return await queries.restore_model(conn, model_id=model, days=settings.deleted_model_days)


@asynccontextmanager
async def _connection(settings: CommonSettings) -> AsyncIterator[OwnConnection]:
    connection = await connect(settings.database_url, application_name="fusion-admin", statement_timeout_s=600)
    try:
        yield connection
    finally:
        await connection.close()


async def _import(
    settings: CommonSettings,
    folder: ModelFolder,
    name: str,
    version: str,
    rehearsal: Path | None,
    progress: Progress,
) -> Imported:
    async with _stores(settings) as (pool, storage):
        await storage.ensure_bucket()
        return await import_base_model(
            pool, storage, folder, name=name, version=version, rehearsal=rehearsal, progress=progress
        )


async def _prune(settings: CommonSettings, min_age: timedelta, dry_run: bool) -> PruneReport:
    async with _stores(settings) as (pool, storage):
        return await Pruner(pool, storage, min_age=min_age, dry_run=dry_run).run()


@asynccontextmanager
async def _stores(settings: CommonSettings) -> AsyncIterator[tuple[Pool, Storage]]:
    pool = await connect_pool(settings.database_url, application_name="fusion-admin", max_size=2)
    async with pool, Storage(settings) as storage:
        yield pool, storage


@contextmanager
def _progress() -> Iterator[Progress]:
    """Bars on stderr, one a stage; nothing where stderr is not a terminal."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=err, disable=not err.is_terminal) as bars:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield show


def _settings(kind: type[SettingsT] = CommonSettings) -> SettingsT:  # type: ignore[assignment]
    try:
        return load(kind)
    except SettingsError as error:
        _fail(str(error))


def _label(what: str, text: str, most: int) -> str:
    if len(text) > most or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text) is None:
        _fail(f"{text!r} is no {what}: up to {most} letters, digits, dots, dashes and underscores; pass --{what}")
    return text


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except BaseModelRejectedError as error:
        _fail(str(error))
    except _EXPECTED_ERRORS as error:
        _fail(f"{type(error).__name__}: {error}")


def _fail(message: str) -> NoReturn:
    err.print(f"error: {message}", markup=False, style="red")
    raise typer.Exit(1)
