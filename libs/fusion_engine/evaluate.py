"""Perplexity of rows, leaving no trace: mode and random states are as before."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator

from fusion_engine.batch import Batch, collate
from fusion_engine.chunked_loss import chunked_cross_entropy, head_of, last_hidden
from fusion_engine.outcomes import RejectedError
from fusion_engine.packing import Row
from fusion_engine.reproducibility import random_states, restore_random_states

HELDOUT_TOKENS_LIMIT = 32_768
_TOKENS_PER_BATCH = 4096


def perplexity(model: Any, rows: list[Row], accelerator: Accelerator) -> tuple[float, int]:
    """(exp of the mean negative log-likelihood of the trained ids, how many they are) over all rows, on every rank.

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
def _sum_of_losses(model: Any, rows: list[Row], accelerator: Accelerator) -> tuple[float, int]:
    loss, tokens = 0.0, 0
    for batch in (one.to(accelerator.device) for one in evaluation_batches(rows)):
        with accelerator.autocast():
            part, count = chunked_cross_entropy(last_hidden(model, **batch.inputs), head_of(model), batch.labels)
        loss += float(part)
        tokens += int(count)
    return loss, tokens


def evaluation_batches(rows: list[Row]) -> Iterator[Batch]:
    """All rows, longest first so that little is padded, in batches of about 4096 positions."""
    by_length = sorted(rows, key=lambda row: -len(row.ids))
    while by_length:
        length = len(by_length[0].ids) - 1
        size = max(1, _TOKENS_PER_BATCH // length)
        yield collate(by_length[:size], length)
        by_length = by_length[size:]
