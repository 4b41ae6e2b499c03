"""The `fusion` command: datasets, jobs and models from a terminal. Reads FUSION_API_URL and FUSION_API_KEY."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fusion_client.account_cli import account_app
from fusion_client.dataset_models import Dataset
from fusion_client.errors import DatasetFailedError
from fusion_client.jobs_cli import Cycles, SeqLen, StepsPerCycle, Turns, jobs_app, show_estimate
from fusion_client.terminal import fault_line, notes, out, session, table, time_text
from fusion_client.webhooks_cli import webhooks_app

Policy = Annotated[str, typer.Option(help="What a bad row does: fail the dataset, or skip: be left out and counted.")]
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Grow and train language models. Set FUSION_API_URL and FUSION_API_KEY first "
    "(a local stack writes both to .fusion/env). The usual way: upload a file, ask recommend for settings, let train "
    "--estimate say what they cost, train, download. docs/client.md has it in full.",
)
app.add_typer(jobs_app)
app.add_typer(account_app)
app.add_typer(webhooks_app)


@contextmanager
def _transfer_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as bar:
        row = bar.add_task(label, total=None)
        yield lambda done, size: bar.update(row, completed=done, total=size)


@app.command()
def upload(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="The dataset's name; the first file's name without it.")] = None,
    policy: Policy = "fail",
    wait: Annotated[bool, typer.Option(help="Wait until every row has been checked.")] = True,
) -> None:
    """Upload files (.jsonl, .csv, .parquet or .txt, also .gz or .zst) as one dataset and print its id."""
    with session() as client:
        upload_ids = []
        for file in files:
            with _transfer_bar(file.name) as on_progress:
                upload_ids.append(client.upload(file, on_progress))
        dataset = client.create_dataset(upload_ids, name, policy)
        if wait:
            try:
                with notes.status("checking every row"):
                    dataset = client.wait_dataset(dataset.id)
            except DatasetFailedError:
                notes.print(f"the whole report: fusion report {dataset.id}", highlight=False)
                raise
        notes.print(_describe(dataset), markup=False, highlight=False)
        out.print(dataset.id, highlight=False)


def _describe(dataset: Dataset) -> str:
    counts = f", {dataset.rows:,} rows in {dataset.shard_count} shards" if dataset.status == "ready" else ""
    skipped = f", {dataset.skipped_rows:,} rows skipped" if dataset.skipped_rows else ""
    return f"dataset {dataset.name} {dataset.version}: {dataset.status}{counts}{skipped}"


@app.command()
def report(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset's id.")],
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show what reading a dataset's files found: rows, duplicates, and what is wrong where."""
    with session() as client:
        found = client.get_dataset_report(dataset)
    if json:
        out.print_json(data=msgspec.to_builtins(found))
        return
    types = ", ".join(f"{count:,} {kind}" for kind, count in found.rows_by_type.items())
    out.print(f"{found.rows:,} rows ({types or 'none'}), {found.text_bytes:,} bytes of text", highlight=False)
    out.print(f"{found.skipped_rows:,} bad rows, {found.duplicate_rows:,} exact duplicates", highlight=False)
    for error in found.errors:
        out.print(fault_line(msgspec.to_builtins(error)), markup=False, highlight=False, soft_wrap=True)
    if found.error_count > len(found.errors):
        out.print(f"{found.error_count:,} errors; the first {len(found.errors):,} are listed", highlight=False)


@app.command()
def preview(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset's id.")],
    rows: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 10,
) -> None:
    """Print a dataset's first rows as they are trained on, a line of JSON each."""
    with session() as client:
        for row in client.preview_dataset(dataset, rows).rows:
            out.print(msgspec.json.encode(row).decode(), markup=False, highlight=False, soft_wrap=True)


@app.command()
def datasets() -> None:
    """List your datasets, newest first."""
    with session() as client:
        rows = [
            [d.id, d.name, d.version, d.status, f"{d.rows:,}", time_text(d.created_at)] for d in client.list_datasets()
        ]
        table("id", "name", "version", "status", "rows", "created", rows=rows)


@app.command("base-models")
def base_models() -> None:
    """List the models that can be grown."""
    with session() as client:
        models = client.list_base_models()
        rows = [[m.id, m.family, m.name, m.version, f"{m.params:,}", m.precision] for m in models]
        table("id", "family", "name", "version", "parameters", "precision", rows=rows)


@app.command()
def models() -> None:
    """List your trained models, newest first."""
    with session() as client:
        rows = [
            [m.id, m.name, m.version, f"{m.params:,}", m.status, time_text(m.created_at)] for m in client.list_models()
        ]
        table("id", "name", "version", "parameters", "status", "created", rows=rows)


@app.command()
def lineage(model_id: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")]) -> None:
    """Show where a model comes from: itself, its parents, and the jobs and datasets that made them."""
    with session() as client:
        rows = [
            [
                one.model_id,
                f"{one.name} {one.version}" + (" (deleted)" if one.status == "deleted" else ""),
                f"{one.params:,}",
                f"{one.job_type} {one.job_id}",
                one.dataset or "",
                one.base_model or "the model below",
            ]
            for one in client.lineage(model_id)
        ]
        table("model", "name", "parameters", "made by", "on", "from", rows=rows)


@app.command()
def recommend(
    base_model: Annotated[str, typer.Option(help="The id of a base model, or of a model of yours.")],
    dataset: Annotated[str, typer.Option(help="The id of a dataset that is ready.")],
    turns: Turns = None,
) -> None:
    """Recommend settings for a model and a dataset, with the reason of each and what the training costs."""
    with session() as client:
        found = client.recommend(base_model, dataset, turns)
        table("setting", "value", "why", rows=[[r.setting, f"{r.value:g}", r.reason] for r in found.reasons])
        show_estimate(found.estimate)
        for warning in found.warnings:
            notes.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@app.command()
def estimate(
    params_before: Annotated[int, typer.Option(help="Parameters of the base model.")],
    params_after: Annotated[int, typer.Option(help="Parameters of the grown model.")],
    turns: Turns = None,
    cycles: Cycles = None,
    steps_per_cycle: StepsPerCycle = None,
    seq_len: SeqLen = None,
) -> None:
    """Say what a training costs by its numbers alone. `fusion train --estimate` does so for a job."""
    said = {"turns": turns, "cycles": cycles, "steps_per_cycle": steps_per_cycle, "seq_len": seq_len}
    given = {name: value for name, value in said.items() if value is not None}
    with session() as client:
        show_estimate(client.estimate({"params_before": params_before, "params_after": params_after, **given}))


@app.command()
def download(
    model_id: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where its files go.", file_okay=False)],
    parallel: Annotated[int, typer.Option(min=1, max=32, help="Files at a time.")] = 4,
) -> None:
    """Download a model's files, each checked against its SHA-256. Run it again to go on after an interruption."""
    with session() as client:
        with _transfer_bar("downloading") as on_progress:
            manifest = client.download_model(model_id, directory, parallel, on_progress)
        notes.print(f"{len(manifest.files)} files, {manifest.size:,} bytes, all verified", highlight=False)
        out.print(str(directory), highlight=False, markup=False)
