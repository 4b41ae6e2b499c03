"""How much memory there is, and how much a step will want."""

from collections.abc import Callable
from pathlib import Path

import torch

from fusion_engine.checkpoint import Parameters

_USABLE_SHARE = 0.8  # of what is free: the rest is for temporary tensors and the allocator's gaps
_GRADIENT_AND_MOMENTS_BYTES = 12  # per parameter that learns: three fp32 tensors


def free_bytes(device: torch.device) -> int:
    """What a new tensor could take: free on the device and unused in torch's pool, or available on the machine."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def needs_activation_checkpointing(
    forward: Callable[[], object], rows: int, parameters: Parameters, device: torch.device
) -> bool:
    """Would the activations of `rows` rows, gradients and moments not fit? `forward` runs the loss of one row."""
    states = sum(parameter.numel() for parameter in parameters.values()) * _GRADIENT_AND_MOMENTS_BYTES
    return saved_bytes(forward) * rows + states > _USABLE_SHARE * free_bytes(device)


def saved_bytes(forward: Callable[[], object]) -> int:
    """The bytes that autograd keeps for the backward pass of `forward`, the leaves that it keeps anyway aside."""
    storages: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = forward()  # alive, so that no storage's address is used twice
        total = sum(storages.values())
    del kept
    return total
