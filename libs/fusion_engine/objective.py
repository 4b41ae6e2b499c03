"""What one step minimises. The loop knows an objective only as a function of (model, batch)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fusion_engine.batch import Batch
from fusion_engine.chunked_loss import chunked_cross_entropy, head_of, last_hidden

# (model, this rank's micro-batch on its device) -> (sum of the losses of all targets in it, number of targets).
# A sum and a count, not a mean: the loop divides by the targets of the whole step, whatever its micro-batches.
LossFunction = Callable[[Any, Batch], tuple[Tensor, Tensor]]


def next_token_loss(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The cross entropy of every label that counts, given the ids of its document before it."""
    return chunked_cross_entropy(last_hidden(model, **batch.inputs), head_of(model), batch.labels)
