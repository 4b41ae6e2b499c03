"""What one step minimises. The loop knows an objective only as a function of (model, batch)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere

# (model, this rank's micro-batch on its device) -> (sum of the losses of all targets in it, number of targets).
# A sum and a count, not a mean: the loop divides by the targets of the whole step, whatever its micro-batches.
LossFunction = Callable[[Any, torch.Tensor], tuple[torch.Tensor, int]]


def next_token_loss(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The cross-entropy of each id after the first, given those before it; `batch` has shape (rows, seq_len + 1)."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    labels = batch[:, 1:].reshape(-1)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum"), labels.numel()
