"""Whole tensors from sharded ones and back: FSDP2 keeps parameters and moments as DTensors, a checkpoint does not."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor, distribute_tensor

from fusion_engine.checkpoint import MOMENTS, Parameters, TrainedTensors


def gathered(tensors: TrainedTensors) -> TrainedTensors:
    """The same tensors whole. All processes must call this; without shards it costs nothing."""
    return TrainedTensors(
        {name: _whole(tensor) for name, tensor in tensors.parameters.items()},
        {name: _whole(tensor) for name, tensor in tensors.moments.items()},
    )


def from_main(tensors: TrainedTensors, parameters: Parameters, accelerator: Accelerator) -> TrainedTensors:
    """The main process's `tensors`, whole, on all processes; those of `parameters` and their moments."""
    if accelerator.num_processes == 1:
        return tensors
    box = [bool(tensors.moments)]
    torch.distributed.broadcast_object_list(box, 0)

    def received(found: torch.Tensor | None, shape: torch.Size) -> torch.Tensor:
        whole = torch.empty(shape, device=accelerator.device) if found is None else found.to(accelerator.device)
        torch.distributed.broadcast(whole, 0)
        return whole

    return TrainedTensors(
        {name: received(tensors.parameters.get(name), parameter.shape) for name, parameter in parameters.items()},
        {
            f"{name}.{key}": received(
                tensors.moments.get(f"{name}.{key}"), torch.Size() if key == "step" else parameter.shape
            )
            for name, parameter in parameters.items()
            for key in (MOMENTS if box[0] else ())
        },
    )


def put_back(parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: TrainedTensors) -> None:
    """Make parameters and moments what `tensors`, whole and equal on all processes, say."""
    optimizer.state.clear()
    for name, parameter in parameters.items():
        parameter.data.copy_(_like(tensors.parameters[name], parameter.data))
        if tensors.moments:
            optimizer.state[parameter] = {key: _moment(tensors.moments, name, key, parameter) for key in MOMENTS}


def _moment(moments: Mapping[str, torch.Tensor], name: str, key: str, parameter: torch.Tensor) -> torch.Tensor:
    moment = moments[f"{name}.{key}"]
    if key == "step":
        return moment.clone().to(parameter.device)
    return _like(moment, parameter.data).clone()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    whole = whole.to(pattern.device)
    if isinstance(pattern, DTensor):
        return distribute_tensor(whole, pattern.device_mesh, pattern.placements)
    return whole
