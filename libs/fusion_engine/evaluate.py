"""Perplexity of held-out rows and of text sampled from the base, leaving no trace: mode and random states stay."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from fusion_core.trainer_protocol import Evaluation

from fusion_engine.batch import Batch, collate
from fusion_engine.chunked_loss import IGNORED_LABEL, chunked_cross_entropy, head_of, last_hidden
from fusion_engine.outcomes import RejectedError
from fusion_engine.packing import Row
from fusion_engine.reproducibility import random_states, restore_random_states

HELDOUT_TOKENS_LIMIT = 32_768
_TOKENS_PER_BATCH = 4096
_LARGEST_EXPONENT = 700.0  # e to this is still a double

Track = Callable[[Sequence[Batch]], Iterable[Batch]]  # how progress is shown: tqdm, or iter for not at all


def evaluate(
    model: Any, heldout: Sequence[Row], retention: Sequence[Row] | None, accelerator: Accelerator
) -> Evaluation:
    """Both perplexities of `model`; step, turn and cycle are the caller's to fill in.

    `retention` is text sampled from the base: that its perplexity stays is what "nothing was forgotten" means. Raises
    RejectedError nonfinite_loss.
    """
    value, tokens = perplexity(model, heldout, accelerator)
    retained, retained_tokens = perplexity(model, retention, accelerator) if retention else (None, 0)
    return Evaluation(
        step=0,
        turn=0,
        perplexity=value,
        tokens=tokens,
        retention_perplexity=retained,
        retention_tokens=retained_tokens,
    )


def perplexity(model: Any, rows: Sequence[Row], accelerator: Accelerator, track: Track = iter) -> tuple[float, int]:
    """(exp of the mean negative log-likelihood of the trained ids, how many they are) over all rows, on every rank.

    Raises RejectedError nonfinite_loss when the mean is not finite.
    """
    with _untouched(model, accelerator):
        loss, tokens = _sum_of_losses(model, _share(evaluation_batches(rows), accelerator), accelerator, track)
    total = accelerator.reduce(torch.tensor([loss, tokens], dtype=torch.float64, device=accelerator.device), "sum")
    mean = float(total[0] / total[1])
    if not math.isfinite(mean):
        raise RejectedError(
            "nonfinite_loss", f"the measured loss is {mean}; lower lr, or look at the data and the weights"
        )
    return math.exp(min(mean, _LARGEST_EXPONENT)), int(total[1])


@contextmanager
def _untouched(model: Any, accelerator: Accelerator) -> Iterator[None]:
    states, training = random_states(accelerator.device), model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        restore_random_states(states, accelerator.device)


@torch.no_grad()
def _sum_of_losses(model: Any, batches: Sequence[Batch], accelerator: Accelerator, track: Track) -> tuple[float, int]:
    loss, tokens = 0.0, 0
    for batch in (one.to(accelerator.device) for one in track(batches)):
        with accelerator.autocast():
            part, count = chunked_cross_entropy(last_hidden(model, **batch.inputs), head_of(model), batch.labels)
        loss += float(part)
        tokens += int(count)
    return loss, tokens


def evaluation_batches(rows: Sequence[Row]) -> list[Batch]:
    """All rows, longest first so that little is padded, in batches of about 4096 positions."""
    by_length = sorted(rows, key=lambda row: -len(row.ids))
    batches = []
    while by_length:
        length = len(by_length[0].ids) - 1
        size = max(1, _TOKENS_PER_BATCH // length)
        batches.append(collate(by_length[:size], length))
        by_length = by_length[size:]
    return batches


def _share(batches: list[Batch], accelerator: Accelerator) -> list[Batch]:
    """This rank's batches: as many on every rank, since weights may be gathered in each forward pass.

    A rank without a batch of its own computes one whose labels do not count.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    idle = replace(batches[0], labels=torch.full_like(batches[0].labels, IGNORED_LABEL))
    padded = batches + [idle] * (-len(batches) % ranks)
    return padded[rank::ranks]
