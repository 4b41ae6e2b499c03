"""From the summed gradients of micro-batches and processes to one update."""

from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator

_BUCKET_BYTES = 64 * 1024 * 1024


def sum_over_processes(parameters: Iterable[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Add up the gradients of all processes, in buckets that are the same in every step.

    DistributedDataParallel regroups its buckets after a process's first step, so that from three processes on a
    resumed run would add in another order; and it cannot let all processes agree to repeat a step.
    """
    if accelerator.num_processes == 1:
        return
    for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        for gradient, total in zip(bucket, torch.split(flat, [gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(total.view_as(gradient))


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    used = 0
    for gradient in gradients:
        if bucket and used + gradient.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket, used = [], 0
        bucket.append(gradient)
        used += gradient.nbytes
    if bucket:
        yield bucket


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """The norm of all gradients together, shape ()."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)


def update(optimizer: torch.optim.Optimizer, divisor: torch.Tensor) -> None:
    """One step with every gradient divided by `divisor`, inside the fused kernel: no pass over memory of its own."""
    optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    optimizer.found_inf = torch.zeros_like(divisor)  # type: ignore[attr-defined]
    optimizer.step()
