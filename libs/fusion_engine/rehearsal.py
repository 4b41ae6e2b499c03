"""Who teaches a job's rehearsal rows: the base inside the model that learns, or a frozen copy of it.

Where only new blocks or adapters learn, the base is the same model with these passed by, and costs no memory. Where old
weights learn too, or new channels lie inside old blocks, a frozen copy is kept in the dtype of the forward pass: 3 GB
for 1.5B parameters in bf16, beside some 38 GB of training state. A rehearsed row costs one forward pass of the base on
top of its training: with a fifth of the rows, about 7 % of a step of full fine-tuning. Where only new blocks learn, the
base's blocks below the first of them are not computed a second time.
"""

from typing import Any

import torch
from fusion_core.trainer_protocol import FinetuneRun, TrainRun

from fusion_engine.base_folder import BaseFolder, load_model
from fusion_engine.grow import new_blocks
from fusion_engine.lora import adapters_off
from fusion_engine.objective import LossFunction, next_token_loss
from fusion_engine.self_distillation import PassedBlocks, base_beside, base_inside, self_distillation_loss
from fusion_engine.trainable import Trainable


def rehearsing_loss(
    run: TrainRun,
    base: BaseFolder,
    grown: Trainable,
    frozen_dtype: torch.dtype,
    device: torch.device,
    *,
    sharded: bool = False,
) -> LossFunction:
    """The loss of a training job: self-distillation on the rows of its pool, if it has one and rehearses."""
    if not run.pool_files or run.hyperparams.replay_fraction == 0.0:
        return next_token_loss
    if run.hyperparams.train_scope == "new" and run.growth_plan.axis == "depth":
        blocks = PassedBlocks(grown.model.get_decoder().layers, new_blocks(run.growth_plan))
        return self_distillation_loss(base_inside(blocks.passed, own_head=run.growth_plan.own_head), in_step=sharded)
    return self_distillation_loss(base_beside(load_model(base.path, frozen_dtype).to(device)))


def rehearsing_loss_of_adapters(run: FinetuneRun, model: Any, *, sharded: bool = False) -> LossFunction:
    """The loss of a fine-tuning job, whose base is the model with its adapters off."""
    if not run.pool_files or run.hyperparams.replay_fraction == 0.0:
        return next_token_loss
    return self_distillation_loss(base_inside(lambda _: adapters_off(model)), in_step=sharded)
