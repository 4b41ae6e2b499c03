"""A fine-tuning attempt from top to bottom: adapters beside a frozen model, trained by the loop, merged at export."""

from pathlib import Path

from accelerate import Accelerator
from fusion_core.trainer_protocol import ExportSaved, FinetuneRun

from fusion_engine.base_folder import check_weights, load_model, open_base
from fusion_engine.checkpoint import identity_of, read_state
from fusion_engine.export import write_export
from fusion_engine.lora import attach_adapters, merged_tensors
from fusion_engine.model_card import add_card
from fusion_engine.model_config import read_shape
from fusion_engine.precision import compute_dtype
from fusion_engine.progress import Progress
from fusion_engine.rehearsal import rehearsing_loss_of_adapters
from fusion_engine.reporter import Reporter
from fusion_engine.run_directory import EXPORT_FOLDER, TOKENS_FOLDER
from fusion_engine.sharding import wants_shards
from fusion_engine.summary import measure, training_summary
from fusion_engine.train import Subject, Trainer
from fusion_engine.training_curve import add_curve
from fusion_engine.training_data import RowSettings, prepare_data


def finetune_job(run_dir: Path, run: FinetuneRun, accelerator: Accelerator, reporter: Reporter) -> dict[str, object]:
    """Do what run.json asks for and return the public result; the model keeps its size.

    Raises RejectedError for bad input and StoppedError when control.json asks to stop.
    """
    hyperparams = run.hyperparams.training()
    reporter.phase("preparing")
    base = open_base(Path(run.base_dir))
    check_weights(base)
    data = prepare_data(run_dir / TOKENS_FOLDER, run, base, accelerator, RowSettings.of(hyperparams))
    identity = identity_of("finetune", run.hyperparams)
    resumed = Path(run.checkpoint_dir) if run.checkpoint_dir is not None else None
    state = read_state(resumed, identity, hyperparams, run.num_processes) if resumed is not None else None
    progress = state.progress if state is not None else Progress()
    model = load_model(base.path).to(compute_dtype(hyperparams.precision, accelerator.device.type == "cpu"))
    parameters, adapters = attach_adapters(model, base, run.hyperparams.lora_rank)
    reporter.obey(progress.step)
    for notice in data.notices if state is None else ():
        reporter.emit(notice)

    reporter.phase("training")
    subject = Subject(
        model=model,
        parameters=parameters,
        rows=data.training,
        loss_of=rehearsing_loss_of_adapters(run, model, sharded=wants_shards(accelerator)),
        measure=lambda model: measure(model, data, accelerator),
        identity=identity,
    )
    trainer = Trainer(run_dir, run, hyperparams, accelerator, reporter, subject, progress)
    if resumed is not None and state is not None:
        trainer.resume(resumed, state)
    trainer.train()

    reporter.phase("exporting")
    params = read_shape(base.config).params
    sizes = {"params_before": params, "params_after": params, "lora_rank": run.hyperparams.lora_rank}
    result = sizes | training_summary(hyperparams, progress, accelerator)
    if accelerator.is_main_process:
        folder = run_dir / EXPORT_FOLDER
        manifest = write_export(base, merged_tensors(base, adapters), base.config, folder)
        manifest = add_curve(folder, manifest, progress)
        manifest = add_card(folder, manifest, run, f"fine-tuned by LoRA of rank {run.hyperparams.lora_rank}", result)
        reporter.emit(ExportSaved(path=str(folder), manifest=manifest, params=params))
    accelerator.wait_for_everyone()
    return result
