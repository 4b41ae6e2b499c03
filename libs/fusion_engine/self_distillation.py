"""Rehearsal without the base's training data: on rows that the base wrote, the model is held to the base's own softmax.

The loss of such a row is KL(base || model) at every position, over the whole vocabulary. Nothing of the base's softmax
is stored: at 65,537 ids and in 16 bits it takes 131 kB a token, 26 GB for a pool of 768 x 256. It is computed again for
each row, with one forward pass of the base and a chunk of positions at a time (chunked_loss), and dropped. For a fifth
of the rows that is about a fifteenth of the work of full fine-tuning.

The base that teaches needs no memory of its own where it is frozen: it is the grown model with the new blocks passed
by. Where old weights learn too, a copy of them is kept, frozen, in the dtype of the forward pass: 3 GB for 1.5B
parameters in bf16, beside some 38 GB of training state. Recomputing old weights from an update's history was not
considered, and a stored top-k softmax is no replacement: its tail is what forgetting happens in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class PassedBlocks:
    """Blocks of a model that can be passed by: inside `passed()` each hands on the hidden states it gets."""

    def __init__(self, blocks: Sequence[torch.nn.Module]) -> None:
        self._passing = False
        for block in blocks:
            self._wrap(block)

    def _wrap(self, block: torch.nn.Module) -> None:
        compute = block.forward
        tuples = False  # Falcon-H1's blocks answer a tuple, the others a tensor

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal tuples
            if self._passing:
                return (hidden_states,) if tuples else hidden_states
            answer = compute(hidden_states, *args, **kwargs)
            tuples = isinstance(answer, tuple)
            return answer

        block.forward = forward

    @contextmanager
    def passed(self) -> Iterator[None]:
        self._passing = True
        try:
            yield
        finally:
            self._passing = False
