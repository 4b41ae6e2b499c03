"""What the model is given: rows of equal length as tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion_engine.chunked_loss import IGNORED_LABEL
from fusion_engine.packing import Row

_SHAPE_STEP = 64


@dataclass(frozen=True)
class Batch:
    """B rows of L positions. Padding comes last and has the id 0 and no label.

    input_ids     (B, L) int64
    labels        (B, L) int64, already shifted: labels[b, t] is the id that position t predicts, or IGNORED_LABEL
    position_ids  (B, L) int64, from 0 again with every document, which is what keeps documents apart: give the model
                  no attention mask and no cache (see attention_mask)
    rehearsed     (B,) bool: text sampled from the base itself
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    rehearsed: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model's forward takes by name."""
        return {"input_ids": self.input_ids, "position_ids": self.position_ids}

    def trimmed(self) -> "Batch":
        """Without the positions at the end that no row learns from, up to a multiple of 64 so that few shapes occur.

        Nothing before them reads them, so losses and gradients stay; what is saved is the work on padding, much where
        a row holds one document only (see attention_mask).
        """
        learned = (self.labels != IGNORED_LABEL).any(dim=0).nonzero()
        end = _SHAPE_STEP * math.ceil((int(learned[-1]) + 1 if len(learned) else 1) / _SHAPE_STEP)
        return Batch(self.input_ids[:, :end], self.labels[:, :end], self.position_ids[:, :end], self.rehearsed)

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.input_ids.to(device), self.labels.to(device), self.position_ids.to(device), self.rehearsed.to(device)
        )


def collate(rows: Sequence[Row], length: int, rehearsed: Sequence[bool] | None = None) -> Batch:
    """The rows as a batch of `length` positions; no row may have more than length + 1 ids."""
    input_ids = np.zeros((len(rows), length), np.int64)
    labels = np.full((len(rows), length), IGNORED_LABEL, np.int64)
    position_ids = np.zeros((len(rows), length), np.int64)
    places = np.arange(length)
    for number, row in enumerate(rows):
        positions = len(row.ids) - 1
        input_ids[number, :positions] = row.ids[:-1]
        counts = row.trained[1:] & ~row.starts[1:]
        labels[number, :positions][counts] = row.ids[1:][counts]
        begins = np.zeros(length, np.int64)
        begins[:positions] = np.where(row.starts[:-1], places[:positions], 0)
        position_ids[number] = places - np.maximum.accumulate(begins)
    flags = torch.zeros(len(rows), dtype=torch.bool) if rehearsed is None else torch.tensor(list(rehearsed))
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(labels), torch.from_numpy(position_ids), flags)
