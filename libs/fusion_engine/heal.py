"""Healing after pruning: the contracted model learns to answer as its source does, at every position.

The loss is KL(source || contracted) over the whole vocabulary (distillation, Hinton et al., arXiv 1503.02531). It needs
no labels, so text that the source wrote itself will do; next-token loss on the same text heals much less (measured in
docs/contraction.md). Nothing of the source's softmax is stored: its hidden states are
computed for each batch and turned into a chunk of probabilities at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusion_engine.batch import Batch
from fusion_engine.chunked_loss import chunked_kl, head_of, last_hidden
from fusion_engine.families import Family
from fusion_engine.objective import LossFunction


def distillation_from(source: Any) -> LossFunction:
    """The loss of a model against `source`, which is in evaluation mode on the same device and does not learn."""

    def loss_of(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            expected = last_hidden(source, **batch.inputs)
        found = last_hidden(model, **batch.inputs)
        return chunked_kl(found, expected, head_of(model), batch.labels, teacher_head=head_of(source))

    return loss_of


def heals(family: Family) -> Callable[[str], bool]:
    """Which parameters learn while healing, by name: those of the FFNs, which are all that pruning changed."""

    def learns(name: str) -> bool:
        place = family.split(name)
        return place is not None and place[1].startswith(f"{family.ffn}.")

    return learns
