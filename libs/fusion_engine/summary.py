"""What the customer sees of a job that trains beside the model: its evaluations and its public result."""

from typing import Any

import msgspec
from accelerate import Accelerator
from fusion_core.growth_plan import GrowthPlan
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import Evaluation

from fusion_engine.evaluate import evaluate
from fusion_engine.progress import Progress
from fusion_engine.reproducibility import fingerprint
from fusion_engine.training_curve import curve_files
from fusion_engine.training_data import TrainingData


def measure(model: Any, data: TrainingData, accelerator: Accelerator) -> Evaluation:
    """Held-out and retention perplexity of `model`; their place in the job is the training loop's to fill in."""
    return evaluate(model, data.heldout, data.retention, accelerator)


def training_summary(hyperparams: Hyperparams, progress: Progress, accelerator: Accelerator) -> dict[str, object]:
    """Perplexities before, after and at each turn's end, the tokens trained on, and the ground it happened on.

    Those of retention are None, and their curve empty, for a job without text sampled from the base.
    """
    ends = {f"turn_{entry.turn}" if entry.turn else "base": entry for entry in progress.evaluations if entry.turn_end}
    first, last = progress.evaluations[0], progress.evaluations[-1]
    retention = {name: entry.retention_perplexity for name, entry in ends.items()}
    return {
        "perplexity_before": first.perplexity,
        "perplexity_after": last.perplexity,
        "perplexity": {name: entry.perplexity for name, entry in ends.items()},
        "retention_perplexity_before": first.retention_perplexity,
        "retention_perplexity_after": last.retention_perplexity,
        "retention_perplexity": {name: value for name, value in retention.items() if value is not None},
        "training_curve": curve_files(),
        "tokens": hyperparams.training_tokens,
        "reproducibility": fingerprint(accelerator.device, hyperparams.seed, accelerator.num_processes),
    }


def growth_summary(plan: GrowthPlan, progress: Progress) -> dict[str, object]:
    """The sizes, and the proof that growing changed nothing."""
    return {
        "params_before": plan.params_before,
        "params_after": plan.params_after,
        "function_preservation": progress.function_preservation,
        "growth_plan": msgspec.to_builtins(plan),
    }
