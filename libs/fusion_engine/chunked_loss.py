"""Losses over the vocabulary in chunks of positions, so that the logits of a batch are never in memory at once.

The logits of 8 x 1024 positions over 65,537 ids take 2 GiB in fp32, and a plain cross entropy holds three such tensors.
Here each chunk's logits, loss and gradient are computed and dropped before the next chunk; what stays is the gradient
with regard to the hidden states, which is as small as they are. The idea is that of the fused linear cross entropy of
Liger Kernel (arXiv 2410.10989), in plain PyTorch: the kernels are the ordinary ones, so a repeated run gives the same
bits. A chunk's gradient takes the place of its log-softmax, which saves autograd's other passes over the logits.

Call these inside the forward of the module that DDP or FSDP2 wraps: the head's weights are whole only there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

IGNORED_LABEL = -100
# Logits of one chunk. A chunk costs about two fp32 tensors of this many elements, 256 MiB together, and with a teacher
# twice that.
CHUNK_ELEMENTS = 2**25


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: softcap * tanh(scale * (hidden @ weight.T) / softcap).

    `weight` has shape (vocabulary, hidden size). `scale` is Falcon-H1's lm_head_multiplier, `softcap` the
    final_logit_softcapping of Gemma2 and Gemma3; the other families have neither.
    """

    weight: Tensor
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Logits in fp32, shape (..., vocabulary), of `hidden`, shape (..., hidden size)."""
        logits = F.linear(hidden, weight if torch.is_autocast_enabled(hidden.device.type) else weight.to(hidden.dtype))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()


def head_of(model: Any) -> Head:
    """The head of a causal language model of any supported family, tied or not.

    Raises ValueError for a head with a bias, which no supported family has.
    """
    layer = model.get_output_embeddings()
    if getattr(layer, "bias", None) is not None:
        raise ValueError(f"{type(model).__name__} has a head with a bias, which no supported family has")
    config = model.config
    return Head(
        weight=layer.weight,
        scale=float(getattr(config, "lm_head_multiplier", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def last_hidden(model: Any, **inputs: Any) -> Tensor:
    """The decoder's last hidden states, final norm applied and head not, shape (batch, positions, hidden size).

    `inputs` are those of the model's forward (input_ids, position_ids, ...); no cache is built.
    """
    hidden: Tensor = model.get_decoder()(**inputs, use_cache=False).last_hidden_state
    return hidden


def chunked_cross_entropy(
    hidden: Tensor, head: Head, labels: Tensor, *, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """(sum of the cross entropies, number of labels that count), a scalar fp32 and a scalar int64.

    `hidden` has shape (..., positions, hidden size); `labels`, shape (..., positions), are already shifted, that is
    labels[t] is the id that position t predicts, and IGNORED_LABEL does not count. The sum has a gradient for `hidden`
    and, if it requires one, for the head's weight. Both results stay on the device: nothing here waits for it.
    """
    targets = labels.reshape(-1)
    kept = targets != IGNORED_LABEL
    places = targets.masked_fill(~kept, 0)

    def chunk_loss(part: slice, logits: Tensor, learns: bool) -> tuple[Tensor, Tensor | None]:
        found, wanted = F.log_softmax(logits, dim=-1), places[part]
        rows = torch.arange(len(wanted), device=wanted.device)
        loss = -found[rows, wanted].masked_fill(~kept[part], 0.0).sum()
        if not learns:
            return loss, None
        gradient = found.exp_()  # of a softmax: the probabilities, less one for the label
        gradient[rows, wanted] -= 1.0
        return loss, gradient

    return _sum_over_chunks(hidden, head, kept, chunk_loss, chunk_elements), kept.sum()


def chunked_kl(
    hidden: Tensor,
    teacher_hidden: Tensor,
    head: Head,
    labels: Tensor,
    *,
    teacher_head: Head | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """(sum of KL(teacher || student) over the full softmax, number of positions that count); 0 where both agree.

    `hidden` is the student's, shape (..., positions, hidden size), and the only one that learns, with its head's weight
    if that requires a gradient; `teacher_hidden` may have another hidden size with its own `teacher_head`, which is the
    student's if left out. Positions whose label is IGNORED_LABEL do not count. The gradient is that of the cross
    entropy against the teacher's distribution, which differs by a constant.
    """
    kept = (labels != IGNORED_LABEL).reshape(-1)
    taught = teacher_hidden.detach().reshape(-1, teacher_hidden.shape[-1]).masked_fill(~kept[:, None], 0.0)
    teacher = head if teacher_head is None else teacher_head

    def chunk_loss(part: slice, logits: Tensor, learns: bool) -> tuple[Tensor, Tensor | None]:
        wanted = F.log_softmax(teacher.logits(taught[part], teacher.weight), dim=-1)
        found = F.log_softmax(logits, dim=-1)
        divergence = F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)
        loss = divergence.masked_fill(~kept[part], 0.0).sum()
        return loss, found.exp_().sub_(wanted.exp_()) if learns else None

    return _sum_over_chunks(hidden, head, kept, chunk_loss, chunk_elements), kept.sum()


# (positions, their logits, whether a gradient is wanted) -> (a sum of losses, its gradient with regard to the logits).
# The gradient of a position that does not count may be anything finite.
_ChunkLoss = Callable[[slice, Tensor, bool], tuple[Tensor, Tensor | None]]


def _sum_over_chunks(hidden: Tensor, head: Head, kept: Tensor, chunk_loss: _ChunkLoss, chunk_elements: int) -> Tensor:
    """`kept`, shape (all positions,), tells which of them count."""
    size = max(1, chunk_elements // head.weight.shape[0])
    # A row of zeros has a row of zeros as its gradient and adds nothing to the weight's: no pass over the logits.
    flat = hidden.reshape(-1, hidden.shape[-1]).masked_fill(~kept[:, None], 0.0)
    apply: Any = _SumOverChunks.apply  # untyped in PyTorch
    total: Tensor = apply(flat, head, head.weight, chunk_loss, size, torch.is_grad_enabled())
    return total


class _SumOverChunks(torch.autograd.Function):
    """The sum of a loss over chunks of positions; the gradients are computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, head: Head, weight: Tensor, chunk_loss: _ChunkLoss, size: int, grad_enabled: bool
    ) -> Tensor:
        wants_hidden, wants_weight = (grad_enabled and ctx.needs_input_grad[place] for place in (0, 2))
        total = torch.zeros((), dtype=torch.float32, device=flat.device)
        hidden_grad = torch.empty_like(flat) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight and not len(flat) else None
        head_weight = weight.detach().requires_grad_(wants_weight)
        for start in range(0, flat.shape[0], size):
            part = slice(start, start + size)
            states = flat[part].detach().requires_grad_(wants_hidden)
            learning = [tensor for tensor in (states, head_weight) if tensor.requires_grad]
            with torch.set_grad_enabled(bool(learning)):
                logits = head.logits(states, head_weight)
            loss, gradient = chunk_loss(part, logits.detach(), bool(learning))
            total += loss
            gradients = torch.autograd.grad(logits, learning, gradient) if learning else ()
            if hidden_grad is not None:
                hidden_grad[part] = gradients[0]
            if wants_weight:
                weight_grad = gradients[-1].float() if weight_grad is None else weight_grad.add_(gradients[-1])
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            None if hidden_grad is None else hidden_grad * outer[0].to(hidden_grad.dtype),
            None,
            None if weight_grad is None else weight_grad.mul_(outer[0]).to(ctx.weight_dtype),
            None,
            None,
            None,
        )
