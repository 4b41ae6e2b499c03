"""An attempt under a launcher whose second process runs out of memory at step 3 and sees no finite loss from step 6."""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from fusion_engine.run import execute
from fusion_engine.train import Trainer

_whole = Trainer._loss
_left = [3]


def faulty(self: Trainer, first: int, count: int) -> Any:
    loss, targets = _whole(self, first, count)
    if self._accelerator.process_index == 1:
        if self.progress.step >= 3 and count > 2:
            raise torch.OutOfMemoryError("injected")
        if self.progress.step >= 6 and _left[0] and first % 4 == 0:
            _left[0] -= 1
            loss = loss * math.nan
    return loss, targets


Trainer._loss = faulty  # type: ignore[method-assign]
execute(Path(sys.argv[1]))
