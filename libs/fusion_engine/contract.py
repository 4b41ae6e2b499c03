"""A contraction from top to bottom: score channels, cut the worst of every layer, heal by distillation, export.

The source folder is only read. Everything before healing is a function of the source, the text and the seed, so that a
resumed attempt computes it again and a checkpoint holds nothing but the healed parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from fusion_core.contraction_plan import ContractionPlan
from fusion_core.model_shapes import shape_of
from fusion_core.trainer_protocol import ContractRun, Evaluation, ExportSaved

from fusion_engine.base_folder import BaseFolder, check_weights, load_model, open_base
from fusion_engine.channel_slices import Channels, contracted_tensors
from fusion_engine.checkpoint import identity_of, read_state
from fusion_engine.evaluate import evaluate
from fusion_engine.export import write_export
from fusion_engine.files import complete_or_absent
from fusion_engine.grow import write_config
from fusion_engine.heal import distillation_from, heals
from fusion_engine.healing_text import HealingText, prepare_text
from fusion_engine.importance import (
    best_channels,
    calibrate,
    channel_scores,
    choose_layers,
    down_projections,
    layer_damage,
)
from fusion_engine.model_card import add_card, contraction_change
from fusion_engine.outcomes import RejectedError
from fusion_engine.precision import compute_dtype
from fusion_engine.progress import Progress
from fusion_engine.reconstruct import reconstruct
from fusion_engine.reporter import Reporter
from fusion_engine.reproducibility import fingerprint
from fusion_engine.run_directory import CONTRACTED_FOLDER, EXPORT_FOLDER
from fusion_engine.safetensors_stream import MemoryTensor, TensorSource, write_model
from fusion_engine.train import Subject, Trainer
from fusion_engine.trainable import load_frozen
from fusion_engine.training_curve import add_curve, curve_files


@dataclass(frozen=True)
class Diagnosis:
    """`kept[l]` are the channels that layer l keeps, and `down` the down-projections that make up for the others.

    `damage[l]` is what the requested cut would cost in layer l alone, as KL in nats; `layers` are the ones that the
    request means: those that lose least.
    """

    kept: list[Channels]
    down: dict[str, torch.Tensor]
    damage: list[float]
    layers: tuple[int, ...]


def contract_job(run_dir: Path, run: ContractRun, accelerator: Accelerator, reporter: Reporter) -> dict[str, object]:
    """Do what run.json asks for; returns the public result.

    Raises RejectedError for input that cannot be contracted and StoppedError when control.json asks to stop.
    """
    reporter.phase("preparing")
    plan, identity = run.contraction_plan, identity_of("contract", run.contraction_plan, run.hyperparams)
    base = open_base(Path(run.base_dir))
    _check_request(run, base)
    check_weights(base)
    resumed = Path(run.checkpoint_dir) if run.checkpoint_dir is not None else None
    healing = run.hyperparams.healing()
    state = read_state(resumed, identity, healing, run.num_processes) if resumed is not None else None
    progress = state.progress if state is not None else Progress()
    reporter.obey(progress.step)
    text = prepare_text(run_dir, run, base, accelerator, reporter)
    dtype = compute_dtype(run.hyperparams.precision, accelerator.device.type == "cpu")
    source = load_model(base.path, dtype).to(accelerator.device).eval().requires_grad_(False)
    reporter.obey(progress.step)

    reporter.phase("diagnosing")
    before = _measure(source, text, accelerator)
    diagnosis = diagnose(source, base, run, text, reporter)
    reporter.obey(progress.step)
    if accelerator.is_local_main_process:
        with complete_or_absent(run_dir / CONTRACTED_FOLDER) as partial:
            write_model(partial, contracted_model(base, diagnosis.kept, diagnosis.down))
            write_config(partial, _contracted_config(base, plan))
    accelerator.wait_for_everyone()

    reporter.phase("training", "healing by distillation from the source")
    model, parameters = load_frozen(run_dir / CONTRACTED_FOLDER, heals(base.family), dtype)
    subject = Subject(
        model=model,
        parameters=parameters,
        rows=text.training,
        loss_of=distillation_from(source),
        measure=lambda model: _measure(model, text, accelerator),
        identity=identity,
    )
    trainer = Trainer(run_dir, run, healing, accelerator, reporter, subject, progress)
    if resumed is not None and state is not None:
        trainer.resume(resumed, state)
    trainer.train()

    reporter.phase("exporting")
    result = _result(run, diagnosis, before, progress, accelerator)
    if accelerator.is_main_process:
        folder = run_dir / EXPORT_FOLDER
        tensors = contracted_model(base, diagnosis.kept, parameters)
        manifest = write_export(base, tensors, _contracted_config(base, plan), folder)
        manifest = add_curve(folder, manifest, progress)
        manifest = add_card(folder, manifest, run, contraction_change(plan), result)
        reporter.emit(ExportSaved(path=str(folder), manifest=manifest, params=plan.params_after))
    accelerator.wait_for_everyone()
    return result


def diagnose(source: Any, base: BaseFolder, run: ContractRun, text: HealingText, reporter: Reporter) -> Diagnosis:
    """Score the channels of every layer on the calibration text, and measure each layer's damage."""
    plan, importance = run.contraction_plan, run.hyperparams.importance
    statistics = calibrate(source, base.family, text.calibration)
    scores = [
        channel_scores(importance, gathered, module.weight)
        for gathered, module in zip(statistics, down_projections(source, base.family), strict=True)
    ]
    requested = max(1, round(plan.ffn_before * (1.0 - plan.contraction_ratio)))
    reporter.phase("diagnosing", f"channels are scored by {importance}; measuring what each layer would lose")
    damage = layer_damage(source, base.family, [best_channels(each, requested) for each in scores], text.damage)
    reporter.phase("diagnosing", "solving the down-projections of the channels that stay")
    kept = [best_channels(each, plan.ffn_after) for each in scores]
    return Diagnosis(
        kept=[channels.numpy() for channels in kept],
        down=reconstruct(source, base.family, kept, text.calibration),
        damage=damage,
        layers=choose_layers(damage, plan.layers_to_contract),
    )


def contracted_model(
    base: BaseFolder, kept: list[Channels], changed: Mapping[str, torch.Tensor]
) -> Mapping[str, TensorSource]:
    """Where each tensor comes from: slices of the source, and `changed` ones from memory in the source's dtypes."""
    tensors = dict(contracted_tensors(base, kept))
    for name, tensor in changed.items():
        tensors[name] = MemoryTensor(tensor, tensors[name].dtype)
    return tensors


def _contracted_config(base: BaseFolder, plan: ContractionPlan) -> dict[str, Any]:
    return base.config | {"intermediate_size": plan.ffn_after}


def _check_request(run: ContractRun, base: BaseFolder) -> None:
    """Raises RejectedError for a source that is not the one the plan was made for."""
    shape, plan = shape_of(base.config), run.contraction_plan
    if (shape.layers, shape.ffn, shape.params) != (plan.layers, plan.ffn_before, plan.params_before):
        raise RejectedError(
            "base_model_corrupt",
            f"the source has {shape.layers} layers, {shape.ffn} FFN channels and {shape.params} parameters; the"
            f" contraction plan was made for {plan.layers}, {plan.ffn_before} and {plan.params_before}",
        )


def _measure(model: Any, text: HealingText, accelerator: Accelerator) -> Evaluation:
    return evaluate(model, text.heldout, text.retention, accelerator)


def _result(
    run: ContractRun, diagnosis: Diagnosis, before: Evaluation, progress: Progress, accelerator: Accelerator
) -> dict[str, object]:
    """The public result of the job."""
    plan = run.contraction_plan
    pruned, healed = progress.evaluations[0], progress.evaluations[-1]
    stages = {"source": before, "pruned": pruned, "healed": healed}
    retention = {name: stage.retention_perplexity for name, stage in stages.items()}
    return {
        "params_before": plan.params_before,
        "params_after": plan.params_after,
        "requested_shrinkage": plan.requested_shrinkage,
        "achieved_shrinkage": plan.achieved_shrinkage,
        "perplexity_before": before.perplexity,
        "perplexity_after": healed.perplexity,
        "perplexity": {name: stage.perplexity for name, stage in stages.items()},
        "retention_perplexity_before": before.retention_perplexity,
        "retention_perplexity_after": healed.retention_perplexity,
        "retention_perplexity": {name: value for name, value in retention.items() if value is not None},
        "training_curve": curve_files(),
        "importance": run.hyperparams.importance,
        "layers": list(diagnosis.layers),
        "layer_damage": diagnosis.damage,
        "tokens": run.hyperparams.healing().training_tokens,
        "contraction_plan": msgspec.to_builtins(plan),
        "reproducibility": fingerprint(accelerator.device, run.hyperparams.seed, accelerator.num_processes),
    }
