"""Rehearsal without the base's training data: on rows that the base wrote, the model is held to the base's own softmax.

The loss of such a row is KL(base || model) at every position, over the whole vocabulary. Nothing of the base's softmax
is stored: at 65,537 ids and 16 bits it takes 131 kB a token, 26 GB for a pool of 768 x 256. It is computed again for
each row, by one forward pass of the base and then a chunk of positions at a time (chunked_loss), and dropped. A stored
top-k is no replacement, since what is forgotten lies in the tail.

Where the base is the lower part of the model that learns, that part is computed once for both (`PassedBlocks`).

Every row's loss is a sum over its targets and the loop divides by the targets of the step, so that a share of the rows
is the same share of the gradient.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusion_engine.batch import Batch
from fusion_engine.chunked_loss import Head, chunked_cross_entropy, chunked_kl, head_of, last_hidden
from fusion_engine.objective import LossFunction, next_token_loss

# (the model that learns, forward inputs by name, which rows of the learner's last forward pass these are)
# -> (the base's last hidden states, the base's head)
Teacher = Callable[[Any, dict[str, Tensor], Tensor], tuple[Tensor, Head]]


def self_distillation_loss(teacher: Teacher, *, in_step: bool = False) -> LossFunction:
    """Cross entropy on the customer's rows and KL to `teacher` on those that were sampled from the base.

    `in_step`: every process asks the teacher in every micro-batch, for a row in vain where it has none to rehearse.
    Processes that share a sharded model must call it equally often.
    """

    def loss_of(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        rehearsed, own = batch.rehearsed.nonzero().flatten(), (~batch.rehearsed).nonzero().flatten()
        if not len(rehearsed) and not in_step:
            return next_token_loss(model, batch)
        hidden, head = last_hidden(model, **batch.inputs), head_of(model)
        taught = rehearsed if len(rehearsed) else own[:1]
        with torch.no_grad():
            wanted, teacher_head = teacher(model, {name: rows[taught] for name, rows in batch.inputs.items()}, taught)
        labels, wanted = batch.labels, wanted[: len(rehearsed)]
        loss, targets = chunked_kl(hidden[rehearsed], wanted, head, labels[rehearsed], teacher_head=teacher_head)
        if len(own):
            own_loss, own_targets = chunked_cross_entropy(hidden[own], head, labels[own])
            loss, targets = loss + own_loss, targets + own_targets
        return loss, targets

    return loss_of


def base_inside(without_new: Callable[[Tensor], AbstractContextManager[None]], *, own_head: bool = False) -> Teacher:
    """The base within the model that learns: inside `without_new(rows)` the model computes what the base computes.

    With `own_head` the learner was given a head that the base does not have: the base reads with its embedding.
    """

    def teach(learner: Any, inputs: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Head]:
        head = head_of(learner)
        if own_head:
            head = replace(head, weight=learner.get_input_embeddings().weight)
        with without_new(rows):
            return last_hidden(learner, **inputs), head

    return teach


def base_beside(model: Any) -> Teacher:
    """A frozen copy of the base, for where old weights learn too."""
    model.eval().requires_grad_(False)

    def teach(_learner: Any, inputs: dict[str, Tensor], _rows: Tensor) -> tuple[Tensor, Head]:
        return last_hidden(model, **inputs), head_of(model)

    return teach


class PassedBlocks:
    """A stack of frozen old blocks and of new ones, which inside `passed(rows)` computes what the base computes.

    There a new block hands on the hidden states that it gets. What lies below the first new block computed the base's
    hidden states in the learner's forward pass already: it is passed by too, and that block hands those on. All stay in
    their places, because transformers finds each block's attention type by its number.
    """

    def __init__(self, stack: Sequence[torch.nn.Module], new: Collection[int]) -> None:
        self._passing: Tensor | None = None  # which rows of the learner's last forward pass
        self._below: Tensor | None = None  # hidden states that reached the first new block in it
        lowest = min(new)
        for number, block in enumerate(stack):
            if number < lowest or number in new:
                self._wrap(block, takes_up=number == lowest)

    def _wrap(self, block: torch.nn.Module, *, takes_up: bool) -> None:
        compute = block.forward
        tuples = False  # Falcon-H1's blocks answer a tuple, the others a tensor; a model learns before it is taught

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal tuples
            if self._passing is not None:
                if takes_up:
                    assert self._below is not None, "a model learns before it is taught"
                    hidden_states = self._below[self._passing]
                return (hidden_states,) if tuples else hidden_states
            if takes_up:
                self._below = hidden_states.detach()
            answer = compute(hidden_states, *args, **kwargs)
            tuples = isinstance(answer, tuple)
            return answer

        block.forward = forward

    @contextmanager
    def passed(self, rows: Tensor) -> Iterator[None]:
        """Inside, a forward pass of `rows` of the learner's last one, given by number, is the base's."""
        self._passing = rows
        try:
            yield
        finally:
            self._passing = None
