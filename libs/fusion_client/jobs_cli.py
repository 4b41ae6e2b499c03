"""The commands of `fusion` about jobs: start one of any type, list, watch, stop, resume, cancel."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fusion_client.models import Job
from fusion_client.progress import watch
from fusion_client.terminal import notes, out, session, table, time_text

jobs_app = typer.Typer()

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
Turns = Annotated[int, typer.Option(help="Complete training passes: 1 fast, 2 recommended, 3 best.")]
Cycles = Annotated[int, typer.Option(help="Cycles in a turn.")]
StepsPerCycle = Annotated[int, typer.Option(help="Steps in a cycle.")]
SeqLen = Annotated[int, typer.Option(help="Tokens in a sequence.")]
OutputName = Annotated[str | None, typer.Option(help="The new model's name.")]
Label = Annotated[list[str] | None, typer.Option(help="key=value; repeat it.")]
Key = Annotated[str | None, typer.Option(help="Submitting a key again finds its job.")]
Watch = Annotated[bool, typer.Option("--watch/--no-watch", help="Show progress until the job ends.")]


@jobs_app.command()
def train(
    base_model: Annotated[str, typer.Option(help="The id of a base model, or of a model of yours.")],
    dataset: Annotated[str, typer.Option(help="The id of a dataset that is ready.")],
    turns: Turns = 1,
    cycles: Cycles = 6,
    steps_per_cycle: StepsPerCycle = 1000,
    seq_len: SeqLen = 256,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    output_name: OutputName = None,
    label: Label = None,
    idempotency_key: Key = None,
    follow: Watch = True,
) -> None:
    """Grow a base model, train the new capacity on a dataset and print the job's id."""
    hyperparams = {
        "turns": turns,
        "cycles": cycles,
        "steps_per_cycle": steps_per_cycle,
        "seq_len": seq_len,
        "lr": lr,
        "output_name": output_name,
    }
    body = {"type": "train", "base_model_id": base_model, "dataset_id": dataset}
    _start(body, hyperparams, label, idempotency_key, follow)


@jobs_app.command()
def finetune(
    dataset: Annotated[str, typer.Option(help="The id of a dataset that is ready.")],
    base_model: Annotated[str | None, typer.Option(help="The id of a base model of the catalog, or:")] = None,
    source_model: Annotated[str | None, typer.Option(help="The id of a model of yours.")] = None,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 32,
    steps: Annotated[int, typer.Option(help="All steps.")] = 2000,
    seq_len: SeqLen = 256,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 2e-4,
    output_name: OutputName = None,
    label: Label = None,
    idempotency_key: Key = None,
    follow: Watch = True,
) -> None:
    """Fine-tune a model on a dataset by LoRA, without a change of size, and print the job's id."""
    named = {"base_model_id": base_model, "source_model_id": source_model}
    body = {"type": "finetune", "dataset_id": dataset} | {name: value for name, value in named.items() if value}
    hyperparams = {
        "lora_rank": lora_rank,
        "steps": steps,
        "seq_len": seq_len,
        "lr": lr,
        "output_name": output_name,
    }
    _start(body, hyperparams, label, idempotency_key, follow)


@jobs_app.command()
def contract(
    source_model: Annotated[str, typer.Option(help="The id of a model of yours, which stays as it is.")],
    ratio: Annotated[float, typer.Option(help="Share of each layer's channels to remove: 0.25, 0.5 or 0.75.")] = 0.5,
    layers: Annotated[int | None, typer.Option(help="Layers to contract; 8, or all of fewer, without it.")] = None,
    dataset: Annotated[str | None, typer.Option(help="What to heal on; the model's own text without it.")] = None,
    output_name: OutputName = None,
    label: Label = None,
    idempotency_key: Key = None,
    follow: Watch = True,
) -> None:
    """Shrink a model of yours and print the job's id."""
    body = {"type": "contract"} | ({"dataset_id": dataset} if dataset else {})
    hyperparams = {
        "source_model_id": source_model,
        "contraction_ratio": ratio,
        "num_layers_to_contract": layers,
        "output_name": output_name,
    }
    _start(body, hyperparams, label, idempotency_key, follow)


def _start(
    body: Mapping[str, Any], hyperparams: Mapping[str, Any], label: list[str] | None, key: str | None, follow: bool
) -> None:
    given = {name: value for name, value in hyperparams.items() if value is not None}
    with session() as client:
        job = client.submit({**body, "hyperparams": given, "labels": _labels(label)}, key)
        out.print(job.id, highlight=False)
        if follow:
            _finish(watch(client, job.id, notes))


def _labels(given: list[str] | None) -> dict[str, str]:
    pairs = [one.partition("=") for one in given or ()]
    if not all(separator for _, separator, _ in pairs):
        raise typer.BadParameter("a label is key=value", param_hint="--label")
    return {key: value for key, _, value in pairs}


@jobs_app.command()
def jobs(
    job_type: Annotated[str | None, typer.Option("--type", help="train, finetune or contract.")] = None,
    status: Annotated[str | None, typer.Option(help="Such as queued, running or completed.")] = None,
    base_model: Annotated[str | None, typer.Option(help="What they start from.")] = None,
    dataset: Annotated[str | None, typer.Option(help="What they train on.")] = None,
    label: Label = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
) -> None:
    """List your jobs, newest first."""
    named = {"type": job_type, "status": status, "base_model": base_model, "dataset": dataset}
    filters = {name: value for name, value in named.items() if value is not None}
    with session() as client:
        rows = [
            [j.id, j.type, j.status, str(j.last_checkpoint_step), str(j.retries), time_text(j.created_at)]
            for j in client.list_jobs(limit, labels=_labels(label), **filters)
        ]
        table("id", "type", "status", "checkpoint step", "retries", "created", rows=rows)


@jobs_app.command("watch")
def watch_job(job_id: JobId) -> None:
    """Show a job's progress until it ends. Ctrl-C leaves the job running."""
    with session() as client:
        _finish(watch(client, job_id, notes))


def _finish(job: Job) -> None:
    """Say what came of a job; a job that did not complete ends the command with status 1."""
    if job.status != "completed":
        raise typer.Exit(1)
    notes.print(f"fetch it with: fusion download {job.output_model_id} DIR", markup=False, highlight=False)


@jobs_app.command()
def cancel(job_id: JobId) -> None:
    """Cancel a job; one that has ended stays as it is."""
    with session() as client:
        job = client.cancel_job(job_id)
        said = (
            f"{job.status}; its worker stops at the next step"
            if job.cancel_requested and not job.is_over
            else job.status
        )
        notes.print(said, markup=False, highlight=False)


@jobs_app.command()
def stop(job_id: JobId) -> None:
    """Stop a job at a checkpoint; resume or cancel it within 30 days."""
    with session() as client:
        job = client.stop_job(job_id)
        asked = job.stop_requested and job.status != "stopped" and not job.is_over
        notes.print(
            f"{job.status}; its worker saves a checkpoint" if asked else job.status, markup=False, highlight=False
        )


@jobs_app.command()
def resume(
    job_id: JobId,
    checkpoint: Annotated[str | None, typer.Option(help="An older checkpoint, from which a new job goes on.")] = None,
    follow: Watch = True,
) -> None:
    """Let a stopped job go on, and print the id of the job that does."""
    with session() as client:
        job = client.resume_job(job_id, checkpoint)
        out.print(job.id, highlight=False)
        if follow:
            _finish(watch(client, job.id, notes))


@jobs_app.command()
def checkpoints(job_id: JobId) -> None:
    """List a job's checkpoints, newest first."""
    with session() as client:
        found = client.list_checkpoints(job_id)
        rows = [[c.id, str(c.step), f"{c.bytes:,}", c.status, time_text(c.created_at)] for c in found]
        table("id", "step", "bytes", "status", "created", rows=rows)
