"""Perplexity on held-out rows, leaving no trace: mode and random states are as before."""

import math
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from accelerate import Accelerator
from numpy.typing import NDArray

from fusion_engine.outcomes import RejectedError
from fusion_engine.reproducibility import random_states, restore_random_states

HELDOUT_TOKENS_LIMIT = 32_768
_TOKENS_PER_BATCH = 4096


def perplexity(model: Any, rows: list[NDArray[np.int32]], accelerator: Accelerator) -> tuple[float, int]:
    """(exp of the mean negative log-likelihood, ids predicted) over all rows, on every rank.

    Raises RejectedError nonfinite_loss when the mean is not finite.
    """
    states, training = random_states(accelerator.device), model.training
    model.eval()
    try:
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        loss, tokens = _sum_of_losses(model, mine, accelerator)
    finally:
        model.train(training)
        restore_random_states(states, accelerator.device)
    total = accelerator.reduce(torch.tensor([loss, tokens], dtype=torch.float64, device=accelerator.device), "sum")
    mean = float(total[0] / total[1])
    if not math.isfinite(mean):
        raise RejectedError("nonfinite_loss", f"the held-out loss is {mean}; lower lr, or look at the data")
    return math.exp(min(mean, 700.0)), int(total[1])


@torch.no_grad()
def _sum_of_losses(model: Any, rows: list[NDArray[np.int32]], accelerator: Accelerator) -> tuple[float, int]:
    loss, tokens = 0.0, 0
    for _, group in groupby(rows, key=len):  # at most two lengths: whole rows, then a short one
        equal = list(group)
        size = max(1, _TOKENS_PER_BATCH // (len(equal[0]) - 1))
        for start in range(0, len(equal), size):
            batch = torch.from_numpy(np.stack(equal[start : start + size]).astype(np.int64)).to(accelerator.device)
            with accelerator.autocast():
                logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            labels = batch[:, 1:].reshape(-1)
            loss += float(F.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum"))
            tokens += labels.numel()
    return loss, tokens
