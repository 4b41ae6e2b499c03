"""make demo: one job from upload to delivery, its worker killed half-way, through the public API alone."""

import hashlib
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import msgspec
from fusion_client import Estimate, Event, Fusion, JobDetail
from fusion_client.progress import watch
from fusion_core.growth_plan import plan_growth
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from fusion_local.demo.base_model import REHEARSAL, build_base_model
from fusion_local.demo.texts import source_code, write_rows
from fusion_local.processes import base_environment
from fusion_local.services import TRAINER, TRAINING_POOL, LocalFusion

TURNS, CYCLES, STEPS_PER_CYCLE = 2, 6, 35
HYPERPARAMS: dict[str, Any] = {
    "turns": TURNS,
    "cycles": CYCLES,
    "steps_per_cycle": STEPS_PER_CYCLE,
    "batch_size": 4,
    "seq_len": 256,
    "lr": 4e-3,
    "output_name": "demo-grown",
}
JOB_DEADLINE_S = 900.0
PROMPT = "def read(self, size):\n"


class DemoError(RuntimeError):
    """The demo did not get where it should; the message says where to look."""


class State(msgspec.Struct):
    """What an earlier run left to reuse. A new `serial` means another job for the same question."""

    dataset_id: str = ""
    serial: int = 1


def run_demo(root: Path, console: Console, *, fresh: bool) -> None:
    """Raises DemoError, AlreadyRunningError, StackError, ChildDiedError, TimeoutError, or FusionError as a customer."""
    started = time.monotonic()
    folder = root / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    console.rule("1 · Fusion starts")
    with (
        LocalFusion(root, console) as fusion,
        fusion.watching(),
        Fusion(fusion.access.url, fusion.access.key) as client,
    ):
        console.rule("2 · the operator imports a base model")
        base = build_base_model(folder / f"base-{sys.version_info.major}.{sys.version_info.minor}", console)
        base_model_id = _import_base_model(fusion, base, console)
        state = _read_state(folder)
        if fresh:
            state.serial += 1
        console.rule("3 · the customer uploads a dataset")
        state.dataset_id = _dataset(client, folder, state.dataset_id, console)
        _write_state(folder, state)
        console.rule("4 · the customer estimates and submits")
        estimate = _estimate(client, base_model_id, base / "config.json", console)
        job = _submit(client, base_model_id, folder, state, console)
        console.rule("5 · grow, train, kill -9, resume")
        job = _follow(fusion, client, job, console)
        console.rule("6 · deliver")
        model_dir = folder / "model"
        result = _deliver(client, job, model_dir, console) | {"estimate_usd": estimate.total_usd}
        result |= {"seconds": round(time.monotonic() - started, 1), "model_dir": str(model_dir.resolve())}
        _show(result, model_dir, console)
        (folder / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
        if result["estimate_usd"] != result["billed_usd"]:
            raise DemoError(f"job {job.id}: the bill differs from the estimate")


def _state_path(folder: Path) -> Path:
    return folder / "state.json"


def _read_state(folder: Path) -> State:
    path = _state_path(folder)
    return msgspec.json.decode(path.read_bytes(), type=State) if path.exists() else State()


def _write_state(folder: Path, state: State) -> None:
    temporary = folder / "state.part"
    temporary.write_bytes(msgspec.json.encode(state))
    temporary.replace(_state_path(folder))


def _import_base_model(fusion: LocalFusion, model: Path, console: Console) -> str:
    rehearsal = model.parent / REHEARSAL
    command = [str(Path(sysconfig.get_path("scripts")) / "fusion-admin"), "base-models", "import", str(model)]
    done = subprocess.run(
        [*command, "--rehearsal", str(rehearsal)],
        env=base_environment() | fusion.stack.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise DemoError(f"fusion-admin base-models import failed:\n{done.stderr}")
    base_model_id = done.stdout.split()[-1]
    console.print(f"  fusion-admin base-models import {model.name} --rehearsal {rehearsal.name}  →  {base_model_id}")
    return base_model_id


def _dataset(client: Fusion, folder: Path, known: str, console: Console) -> str:
    """The ready dataset of an earlier run, or a new one made of the standard library's source code."""
    if known and any(dataset.id == known and dataset.status == "ready" for dataset in client.list_datasets()):
        console.print(f"  reusing dataset {known}")
        return known
    path = folder / "stdlib-source.jsonl"
    write_rows(path, source_code())
    upload_id = client.upload(path)
    console.print(f"  PUT {path.name}, {path.stat().st_size / 1e6:.1f} MB, straight to S3  →  upload {upload_id}")
    dataset = client.wait_dataset(client.create_dataset([upload_id], "stdlib-source").id, timeout_s=120, poll_s=0.2)
    console.print(f"  dataset {dataset.name} {dataset.version}: {dataset.rows} rows, {dataset.status}")
    return dataset.id


def _estimate(client: Fusion, base_model_id: str, config: Path, console: Console) -> Estimate:
    """What the job will cost, asked before it exists; the grown model's size is arithmetic on the base's config."""
    base = next(model for model in client.list_base_models() if model.id == base_model_id)
    plan = plan_growth(msgspec.json.decode(config.read_bytes(), type=dict[str, Any]))
    console.print(f"  base model {base.name}: {base.params:,} parameters, to grow to {plan.params_after:,}")
    console.print(
        f"  {TURNS} turns x {CYCLES} cycles x {STEPS_PER_CYCLE} steps, made for two cores: "
        f"the defaults, meant for a GPU, would be {TURNS} x 6 x 1000 = {TURNS * 6000:,} steps"
    )
    tokens = TURNS * CYCLES * STEPS_PER_CYCLE * HYPERPARAMS["seq_len"] * HYPERPARAMS["batch_size"]
    asked = {"type": "train", "params_before": base.params, "params_after": plan.params_after, "tokens": tokens}
    estimate = client.estimate(asked)
    lines = ", ".join(f"{line.label} ${line.amount:.6f}" for line in estimate.line_items)
    console.print(f"  estimate ${estimate.total_usd:.6f} ({lines})")
    return estimate


def _submit(client: Fusion, base_model_id: str, folder: Path, state: State, console: Console) -> JobDetail:
    """The job of this question: begun, finished by an earlier run, or new where that one failed or was cancelled."""
    question = msgspec.json.encode([base_model_id, state.dataset_id, HYPERPARAMS], order="sorted")
    while True:
        created = client.create_job(
            base_model_id=base_model_id,
            dataset_id=state.dataset_id,
            hyperparams=HYPERPARAMS,
            idempotency_key=f"demo-{state.serial}-{hashlib.sha256(question).hexdigest()[:12]}",
        )
        job = client.get_job(created.id)
        if job.status not in ("failed", "cancelled"):
            console.print(f"  POST /jobs  →  job {job.id}, {job.status}")
            return job
        console.print(f"  job {job.id} of an earlier run is {job.status}: submitting it anew")
        state.serial += 1
        _write_state(folder, state)


def _follow(fusion: LocalFusion, client: Fusion, job: JobDetail, console: Console) -> JobDetail:
    """Watch to the end; half-way, and once there is a checkpoint, the worker's machine is lost."""
    if job.status == "completed":
        console.print("  the job of an earlier run is completed; make demo FRESH=1 trains anew")
        return job
    kill_at = max(job.progress.total_steps // 2, job.progress.step + 1)  # earlier events tell of an earlier run
    killed = job.retries > 0
    has_checkpoint = job.last_checkpoint_step > 0

    def on_event(event: Event) -> None:
        nonlocal killed, has_checkpoint
        has_checkpoint = has_checkpoint or event.type == "checkpoint"
        if killed or not has_checkpoint or event.type != "metrics" or int(event.data["step"]) < kill_at:
            return
        killed = True
        pid = fusion.stack.processes.pid(TRAINER)
        fusion.stack.processes.kill(TRAINER)
        console.print(f"  [red]kill -9[/] worker {pid} and its whole process tree at step {event.data['step']}")
        fusion.start_worker(TRAINER, TRAINING_POOL)
        console.print("  another worker started; the job is its own again when the lease (20 s) has run out")

    done = watch(client, job.id, console, on_event, timeout_s=JOB_DEADLINE_S)
    if done.status != "completed":
        raise DemoError(f"the job ended as {done.status}: {done.error}; see {fusion.root / 'logs'}")
    return done


def _deliver(client: Fusion, job: JobDetail, model_dir: Path, console: Console) -> dict[str, Any]:
    if job.output_model_id is None:
        raise DemoError("a completed job has no model")
    columns = (TextColumn("  download"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console) as progress:
        manifest = client.download_manifest(job.output_model_id)
        total = sum(file.size for file in manifest.files)
        bar = progress.add_task("download", total=total)
        client.download_model(
            job.output_model_id, model_dir, on_progress=lambda done, _: progress.update(bar, completed=done)
        )
    console.print(f"  {len(manifest.files)} files, every SHA-256 as in the manifest")
    result = msgspec.to_builtins(client.result(job.id))
    return {
        "job_id": job.id,
        "params_before": job.params_before,
        "params_after": job.params_after,
        "perplexity": result["perplexity"],
        "tokens": result["tokens"],
        "billed_usd": result["cost_usd"],
        "retries": job.retries,
    }


def _show(result: dict[str, Any], model_dir: Path, console: Console) -> None:
    from fusion_local.demo.show import generate, table

    console.print("  loaded with AutoModelForCausalLM.from_pretrained; it goes on from the prompt:")
    lines = generate(model_dir, PROMPT).splitlines()
    console.print("".join(f"    {line}\n" for line in lines), style="cyan", markup=False)
    console.print(table(result))
