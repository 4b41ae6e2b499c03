"""The commands of `fusion` about jobs: start one of any type, list, watch, stop, resume, cancel."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer

from fusion_client.account_models import Estimate
from fusion_client.models import Job
from fusion_client.progress import watch
from fusion_client.terminal import notes, out, session, table, time_text

jobs_app = typer.Typer()

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
# What is not given is left to the server, whose defaults docs/api.md lists.
Turns = Annotated[int | None, typer.Option(help="Complete training passes: 1 fast, 2 recommended, 3 best.")]
Cycles = Annotated[int | None, typer.Option(help="Cycles in a turn.")]
StepsPerCycle = Annotated[int | None, typer.Option(help="Steps in a cycle.")]
SeqLen = Annotated[int | None, typer.Option(help="Tokens in a sequence.")]
Lr = Annotated[float | None, typer.Option(help="Peak learning rate.")]
OutputName = Annotated[str | None, typer.Option(help="The new model's name.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other hyperparameter; repeat it.")
]
Label = Annotated[list[str] | None, typer.Option(help="key=value; repeat it.")]
Priority = Annotated[str | None, typer.Option(help="high, normal or low: jobs of a higher one start first.")]
GpuClass = Annotated[str | None, typer.Option(help="A machine with such GPUs, as h100; --gpu-count goes with it.")]
GpuCount = Annotated[int | None, typer.Option(min=1, help="How many GPUs it has at the least.")]
Key = Annotated[str | None, typer.Option(help="Submitting a key again finds its job.")]
Price = Annotated[bool, typer.Option("--estimate", help="Say what the job would cost, and create nothing.")]
Watch = Annotated[bool, typer.Option("--watch/--no-watch", help="Show progress until the job ends.")]


@jobs_app.command()
def train(
    base_model: Annotated[str, typer.Option(help="The id of a base model, or of a model of yours.")],
    dataset: Annotated[str, typer.Option(help="The id of a dataset that is ready.")],
    turns: Turns = None,
    cycles: Cycles = None,
    steps_per_cycle: StepsPerCycle = None,
    seq_len: SeqLen = None,
    lr: Lr = None,
    output_name: OutputName = None,
    settings: Settings = None,
    label: Label = None,
    priority: Priority = None,
    gpu_class: GpuClass = None,
    gpu_count: GpuCount = None,
    idempotency_key: Key = None,
    price: Price = False,
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
        **_settings(settings),
    }
    body = {
        "type": "train",
        "base_model_id": base_model,
        "dataset_id": dataset,
        "labels": _labels(label),
        "priority": priority,
        "compute": _compute(gpu_class, gpu_count),
    }
    _start(body, hyperparams, idempotency_key, price, follow)


@jobs_app.command()
def finetune(
    dataset: Annotated[str, typer.Option(help="The id of a dataset that is ready.")],
    base_model: Annotated[str | None, typer.Option(help="The id of a base model of the catalog, or:")] = None,
    source_model: Annotated[str | None, typer.Option(help="The id of a model of yours.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Rank of the adapters.")] = None,
    steps: Annotated[int | None, typer.Option(help="All steps.")] = None,
    seq_len: SeqLen = None,
    lr: Lr = None,
    output_name: OutputName = None,
    settings: Settings = None,
    label: Label = None,
    priority: Priority = None,
    gpu_class: GpuClass = None,
    gpu_count: GpuCount = None,
    idempotency_key: Key = None,
    price: Price = False,
    follow: Watch = True,
) -> None:
    """Fine-tune a model on a dataset by LoRA, without a change of size, and print the job's id."""
    body = {
        "type": "finetune",
        "base_model_id": base_model,
        "source_model_id": source_model,
        "dataset_id": dataset,
        "labels": _labels(label),
        "priority": priority,
        "compute": _compute(gpu_class, gpu_count),
    }
    hyperparams = {
        "lora_rank": lora_rank,
        "steps": steps,
        "seq_len": seq_len,
        "lr": lr,
        "output_name": output_name,
        **_settings(settings),
    }
    _start(body, hyperparams, idempotency_key, price, follow)


@jobs_app.command()
def contract(
    source_model: Annotated[str, typer.Option(help="The id of a model of yours, which stays as it is.")],
    ratio: Annotated[float | None, typer.Option(help="Share of each layer's channels to remove, as 0.25.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers to contract; 8, or all of fewer, without it.")] = None,
    dataset: Annotated[str | None, typer.Option(help="What to heal on; the model's own text without it.")] = None,
    output_name: OutputName = None,
    settings: Settings = None,
    label: Label = None,
    priority: Priority = None,
    gpu_class: GpuClass = None,
    gpu_count: GpuCount = None,
    idempotency_key: Key = None,
    price: Price = False,
    follow: Watch = True,
) -> None:
    """Shrink a model of yours and print the job's id."""
    hyperparams = {
        "source_model_id": source_model,
        "contraction_ratio": ratio,
        "num_layers_to_contract": layers,
        "output_name": output_name,
        **_settings(settings),
    }
    body = {
        "type": "contract",
        "dataset_id": dataset,
        "labels": _labels(label),
        "priority": priority,
        "compute": _compute(gpu_class, gpu_count),
    }
    _start(body, hyperparams, idempotency_key, price, follow)


def _start(body: Mapping[str, Any], hyperparams: Mapping[str, Any], key: str | None, price: bool, follow: bool) -> None:
    whole = {**_given(body), "hyperparams": _given(hyperparams)}
    with session() as client:
        if price:
            show_estimate(client.estimate({"job": whole}))
            return
        job = client.submit(whole, key)
        out.print(job.id, highlight=False)
        if follow:
            _finish(watch(client, job.id, notes))


def _compute(gpu_class: str | None, gpu_count: int | None) -> dict[str, Any] | None:
    """The machine asked for; None: the usual one."""
    if gpu_class is None and gpu_count is None:
        return None
    if gpu_class is None or gpu_count is None:
        raise typer.BadParameter("a machine is named by both", param_hint="--gpu-class and --gpu-count")
    return {"gpu_class": gpu_class, "gpu_count": gpu_count}


def _given(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def show_estimate(answer: Estimate) -> None:
    """Its lines and their sum. The rate of parameters is that of a billion (docs/api.md)."""
    per = {"params": "1B-params"}
    rows = [
        [i.label, f"{i.qty:,.0f}", f"${i.rate:g} per {per.get(i.unit, i.unit)}", f"${i.amount:,.6f}"]
        for i in answer.line_items
    ]
    table("line", "quantity", "rate", "amount", rows=[*rows, ["total", "", "", f"${answer.total_usd:,.6f}"]])
    if answer.params_after is not None:
        notes.print(f"{answer.params_before:,} parameters become {answer.params_after:,}", highlight=False)


def _settings(given: list[str] | None) -> dict[str, Any]:
    """A value is JSON where it can be read as such, and else the word itself."""
    settings: dict[str, Any] = {}
    for name, value in _pairs(given, "--set", "a setting is NAME=VALUE").items():
        try:
            settings[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            settings[name] = value
    return settings


def _labels(given: list[str] | None) -> dict[str, str]:
    return _pairs(given, "--label", "a label is key=value")


def _pairs(given: list[str] | None, option: str, form: str) -> dict[str, str]:
    pairs = [one.partition("=") for one in given or ()]
    if not all(separator for _, separator, _ in pairs):
        raise typer.BadParameter(form, param_hint=option)
    return {name: value for name, _, value in pairs}


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
    with session() as client:
        rows = [
            [j.id, j.type, j.status, str(j.last_checkpoint_step), str(j.retries), time_text(j.created_at)]
            for j in client.list_jobs(limit, labels=_labels(label), **_given(named))
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
