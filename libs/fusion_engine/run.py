"""An attempt from top to bottom; a train job's: prepare, grow, train, export. Read this file first."""

from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import (
    ContractRun,
    EngineRun,
    ExportSaved,
    FinetuneRun,
    Finished,
    Grown,
    Outcome,
    Rejected,
    SampleRun,
    Stopped,
    TrainRun,
    read_run,
)

from fusion_engine.base_folder import BaseFolder, open_base
from fusion_engine.checkpoint import CheckpointState, Parameters, identity_of, read_state
from fusion_engine.contract import contract_job
from fusion_engine.diagnose import diagnosed_plan
from fusion_engine.export import export
from fusion_engine.finetune import finetune_job
from fusion_engine.grow import grow
from fusion_engine.guard import check_growth, guard_prompts
from fusion_engine.model_card import add_card, growth_change
from fusion_engine.outcomes import RejectedError, StoppedError
from fusion_engine.precision import compute_dtype
from fusion_engine.progress import Progress
from fusion_engine.rehearsal import rehearsing_loss
from fusion_engine.reporter import Reporter
from fusion_engine.reproducibility import make_deterministic
from fusion_engine.retain import RetainPoint, Start, go_back, retain_summary
from fusion_engine.run_directory import EXPORT_FOLDER, GROWN_FOLDER, TOKENS_FOLDER
from fusion_engine.sample import sample_job
from fusion_engine.sharding import wants_shards
from fusion_engine.summary import growth_summary, measure, training_summary
from fusion_engine.train import Subject, Trainer
from fusion_engine.trainable import Trainable, load_grown
from fusion_engine.training_curve import add_curve
from fusion_engine.training_data import RowSettings, TrainingData, prepare_data

_EngineJob = TrainRun | FinetuneRun | ContractRun | SampleRun


def execute(run_dir: Path) -> Outcome:
    """Do the work that run.json asks for and report it; the outcome is the last event.

    Raises what no outcome describes: the attempt has then crashed and may be tried again from its last checkpoint.
    """
    run = read_run(run_dir)
    if not isinstance(run, _EngineJob):
        raise ValueError(f"{run_dir / 'run.json'} is not a job of the engine; `python -m fusion_data` does ingests")
    accelerator = start_accelerator(run, _process_settings(run))
    reporter = Reporter(run_dir, accelerator)
    try:
        outcome = _outcome(run_dir, run, accelerator, reporter)
        reporter.emit(outcome)
        accelerator.end_training()
    finally:
        reporter.close()
    return outcome


def _outcome(run_dir: Path, run: _EngineJob, accelerator: Accelerator, reporter: Reporter) -> Outcome:
    try:
        _check_batch(run)
        if isinstance(run, SampleRun):
            return Finished(result=sample_job(run_dir, run, accelerator, reporter))
        if isinstance(run, FinetuneRun):
            return Finished(result=finetune_job(run_dir, run, accelerator, reporter))
        if isinstance(run, ContractRun):
            return Finished(result=contract_job(run_dir, run, accelerator, reporter))
        return Finished(result=_train_job(run_dir, run, accelerator, reporter))
    except StoppedError as stop:
        return Stopped(step=stop.step, reason=stop.reason)
    except RejectedError as error:
        return Rejected(code=error.code, message=error.message, errors=error.errors)


def _check_batch(run: _EngineJob) -> None:
    """Raises RejectedError validation_failed where a micro-batch cannot be shared: no other attempt could."""
    rows = _process_settings(run).batch_size
    if rows % run.num_processes:
        detail = f"batch_size {rows} cannot be shared by {run.num_processes} processes; choose a multiple"
        fault: dict[str, object] = {"pointer": "/hyperparams/batch_size", "detail": detail}
        raise RejectedError("validation_failed", detail, (fault,))


def _process_settings(run: _EngineJob) -> Hyperparams:
    if isinstance(run, SampleRun):
        return Hyperparams(seed=run.seed, batch_size=run.num_processes)
    if isinstance(run, ContractRun):
        return run.hyperparams.healing()
    return run.hyperparams.training() if isinstance(run, FinetuneRun) else run.hyperparams


def start_accelerator(run: EngineRun, hyperparams: Hyperparams) -> Accelerator:
    """Deterministic kernels and the job's precision. Raises ValueError when the launch is not the one it needs."""
    make_deterministic(hyperparams.seed, run.threads, hyperparams.deterministic)
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    computes_in_bf16 = compute_dtype(hyperparams.precision, on_cpu) == torch.bfloat16
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if computes_in_bf16 else "no")
    if accelerator.num_processes != run.num_processes:  # `accelerate launch --cpu --num_processes 2` starts one
        raise ValueError(f"launched with {accelerator.num_processes} processes, run.json asks for {run.num_processes}")
    return accelerator


def _train_job(run_dir: Path, run: TrainRun, accelerator: Accelerator, reporter: Reporter) -> dict[str, object]:
    reporter.phase("preparing")
    base = open_base(Path(run.base_dir), run.growth_plan)
    _check_request(run, accelerator)
    data = prepare_data(run_dir / TOKENS_FOLDER, run, base, accelerator, RowSettings.of(run.hyperparams))
    identity, state = _identity(run), _read_checkpoint(run)
    reporter.obey(state.progress.step if state is not None else 0)
    for notice in data.notices if state is None else ():
        reporter.emit(notice)

    plan = state.progress.growth_plan if state is not None else None  # a resumed job keeps the places it was given
    plan = plan or diagnosed_plan(run, base, data.training, accelerator, reporter)
    run = msgspec.structs.replace(run, growth_plan=plan)
    progress = _grow(run_dir, run, base, data, state, accelerator, reporter)
    frozen_dtype = compute_dtype(run.hyperparams.precision, accelerator.device.type == "cpu")
    grown = load_grown(run_dir / GROWN_FOLDER, run.growth_plan, run.hyperparams, base.family, frozen_dtype)
    reporter.obey(progress.step)

    reporter.phase("training")
    subject = Subject(
        model=grown.model,
        parameters=grown.parameters,
        rate_scales=grown.rate_scales,
        rows=data.training,
        loss_of=rehearsing_loss(run, base, grown, frozen_dtype, accelerator.device, sharded=wants_shards(accelerator)),
        measure=lambda model: measure(model, data, accelerator),
        identity=identity,
    )
    learned = _by_every_name(grown)  # before training, which may shard the model
    trainer = Trainer(run_dir, run, run.hyperparams, accelerator, reporter, subject, progress)
    if run.checkpoint_dir is not None and state is not None:
        trainer.resume(Path(run.checkpoint_dir), state)
    trainer.train()

    reporter.phase("exporting")
    retain = run.hyperparams.retain
    curve: tuple[RetainPoint, ...] = ()
    if not wants_shards(accelerator):
        start = Start(run_dir / GROWN_FOLDER, base.family, run.growth_plan)
        curve = go_back(grown.parameters, start, retain, lambda: measure(grown.model, data, accelerator))
    result = growth_summary(run.growth_plan, progress) | training_summary(run.hyperparams, progress, accelerator)
    result |= retain_summary(retain, curve)
    if accelerator.is_main_process:
        folder = run_dir / EXPORT_FOLDER
        manifest = export(base, run.growth_plan, learned, folder)
        manifest = add_curve(folder, manifest, progress)
        manifest = add_card(folder, manifest, run, growth_change(run.growth_plan), result)
        reporter.emit(ExportSaved(path=str(folder), manifest=manifest, params=run.growth_plan.params_after))
    accelerator.wait_for_everyone()
    return result


def _check_request(run: TrainRun, accelerator: Accelerator) -> None:
    """Raises RejectedError validation_failed for what no worker can train."""
    if run.hyperparams.train_scope == "new" and not run.growth_plan.params_added:
        raise RejectedError(
            "validation_failed",
            "growth_factor 1.0 adds nothing that train_scope new could train; choose a larger one, or train_scope all",
        )
    if run.hyperparams.retain and wants_shards(accelerator):
        raise RejectedError("validation_failed", "a model sharded by FSDP2 cannot go back; set retain to 0")


def _read_checkpoint(run: TrainRun) -> CheckpointState | None:
    if run.checkpoint_dir is None:
        return None
    return read_state(Path(run.checkpoint_dir), _identity(run), run.hyperparams, run.num_processes)


def _identity(run: TrainRun) -> str:
    return identity_of("train", run.growth_plan)


def _grow(
    run_dir: Path,
    run: TrainRun,
    base: BaseFolder,
    data: TrainingData,
    state: CheckpointState | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> Progress:
    """Write the grown folder; the first attempt also proves that it computes what the base computes."""
    plan, folder = run.growth_plan, run_dir / GROWN_FOLDER
    if state is None:
        reporter.phase("growing")
    if accelerator.is_local_main_process:  # machines of a group share no disk
        grow(base, plan, folder)
    accelerator.wait_for_everyone()
    if state is not None:
        return state.progress
    prompts = guard_prompts([row.ids for row in data.heldout], int(base.config["vocab_size"]))
    difference = check_growth(base.path, folder, prompts, accelerator.device)
    reporter.emit(
        Grown(params_before=plan.params_before, params_after=plan.params_after, function_preservation=difference)
    )
    return Progress(function_preservation=difference, growth_plan=plan)


def _by_every_name(grown: Trainable) -> Parameters:
    """What learned, under each name it has: a tied head may be stored a second time beside the embedding."""
    learned = {id(parameter) for parameter in grown.parameters.values()}
    named = grown.model.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in named if id(parameter) in learned}
