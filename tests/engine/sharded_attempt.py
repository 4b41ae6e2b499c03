"""An attempt under a launcher with FSDP2 that notes how much of the parameters each process holds in training."""

import sys
from pathlib import Path

from fusion_engine.cli import main
from fusion_engine.train import Trainer

_step = Trainer._step


def step(self: Trainer) -> bool:
    rank = self._accelerator.process_index
    local = sum(parameter.to_local().numel() for parameter in self._parameters.values())  # type: ignore[attr-defined]
    total = sum(parameter.numel() for parameter in self._parameters.values())
    Path(sys.argv[1], f"held-{rank}").write_text(f"{local} {total}")
    return _step(self)


Trainer._step = step  # type: ignore[method-assign]
main(sys.argv[1:])
