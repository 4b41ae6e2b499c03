"""fusion-admin base-models: the catalog that customers grow models from."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from fusion_core.db.audit import By
from fusion_core.settings import CommonSettings
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from fusion_orchestrator.admin_cli.running import err, fail, out, run, settings, stores
from fusion_orchestrator.admin_cli.who import Actor, Why, setting_up
from fusion_orchestrator.base_model_import import Imported, Progress, import_base_model
from fusion_orchestrator.model_folder import BaseModelRejectedError, ModelFolder, verify_model_folder
from fusion_orchestrator.rehearsal import RehearsalError, check_rehearsal

commands = typer.Typer(no_args_is_help=True, help="The catalog of models that customers can grow.")


@commands.command("import")
def import_base(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face model folder. It is only read.")],
    rehearsal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='JSON lines {"text": ...} of what the model was trained on. Jobs rehearse it, beside the text that is '
            "sampled from the model (replay_fraction), which keeps a grown model from forgetting.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the catalog; the folder's name unless given.")] = None,
    version: Annotated[str | None, typer.Option(help="Version in the catalog; the precision unless given.")] = None,
    reason: Why = None,
    actor: Actor = None,
) -> None:
    """Import a base model into the catalog and print its id.

    First the folder is verified without loading anything: config, architecture, every shard's header, the parameter
    count, the tokenizer. Every fault is named at once. Then the files are hashed and uploaded, and the catalog gets
    its entry last, so that a base model is there completely or not at all. Importing the same content again answers
    the entry that exists.
    """
    by = setting_up(actor, reason)
    try:
        verified = verify_model_folder(folder)
        rows = check_rehearsal(rehearsal) if rehearsal else 0
    except (BaseModelRejectedError, RehearsalError, OSError) as error:
        fail(f"{folder} cannot be imported:\n{error}")
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
        imported = run(_import(settings(), by, verified, name, version, rehearsal, progress))
    existed = "" if imported.created else " (the same content was imported before; nothing was changed)"
    err.print(f"base model {imported.name} {imported.version}{existed}")
    out.print(str(imported.id))


async def _import(
    common: CommonSettings,
    by: By,
    folder: ModelFolder,
    name: str,
    version: str,
    rehearsal: Path | None,
    progress: Progress,
) -> Imported:
    async with stores(common) as (pool, storage):
        await storage.ensure_bucket()
        return await import_base_model(
            pool, storage, by, folder, name=name, version=version, rehearsal=rehearsal, progress=progress
        )


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


def _label(what: str, text: str, most: int) -> str:
    if len(text) > most or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text) is None:
        fail(f"{text!r} is no {what}: up to {most} letters, digits, dots, dashes and underscores; pass --{what}")
    return text
