"""What one step minimises. The loop knows an objective only as a function of (model, batch)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fusion_engine.chunked_loss import chunked_cross_entropy, head_of, last_hidden

# (model, this rank's micro-batch on its device) -> (sum of the losses of all targets in it, number of targets).
# A sum and a count, not a mean: the loop divides by the targets of the whole step, whatever its micro-batches.
LossFunction = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


def next_token_loss(model: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each id after the first, given those before it; `batch` has shape (rows, seq_len + 1)."""
    return chunked_cross_entropy(last_hidden(model, input_ids=batch[:, :-1]), head_of(model), batch[:, 1:])
