"""From the summed gradients of micro-batches and processes to one update."""

from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

_BUCKET_BYTES = 64 * 1024 * 1024


def sum_over_processes(parameters: Iterable[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Add up the gradients of all processes, in buckets that are the same in every step.

    DistributedDataParallel regroups its buckets after a process's first step, so that from three processes on a
    resumed run would add in another order; and it cannot let all processes agree to repeat a step.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if accelerator.num_processes == 1 or any(isinstance(gradient, DTensor) for gradient in gradients):
        return  # sharded ones were added up in the backward pass
    for bucket in _buckets(gradients):
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
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def update(optimizer: torch.optim.Optimizer, divisor: torch.Tensor) -> None:
    """One step with every gradient divided by `divisor`; inside the fused kernel where it can: no pass over memory."""
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(isinstance(parameter, DTensor) for parameter in learning):  # the kernel takes no divisor for these
        for parameter in learning:
            if parameter.grad is not None:
                parameter.grad.div_(divisor)
    else:
        optimizer.grad_scale = divisor  # type: ignore[attr-defined]
        optimizer.found_inf = torch.zeros_like(divisor)  # type: ignore[attr-defined]
    optimizer.step()
