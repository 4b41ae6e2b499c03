"""A model sharded over processes (FSDP2, torch's fully_shard), and whole tensors from sharded ones and back.

Chosen as accelerate chooses it, by `accelerate launch --use_fsdp --fsdp_version 2`. Parameters, gradients and moments
are then DTensors, of which each process holds a part; checkpoints and exports know whole tensors only.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fusion_engine.checkpoint import MOMENTS, Parameters, TrainedTensors

Answer = TypeVar("Answer")


def wants_shards(accelerator: Accelerator) -> bool:
    return accelerator.num_processes > 1 and bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


class Learner(torch.nn.Module):
    """The outermost module, around a causal language model: what is called through it finds whole weights."""

    def __init__(self, model: Any, device: torch.device, *, sharded: bool) -> None:
        super().__init__()
        self.model, self.sharded = model.to(device), sharded
        if sharded:
            for block in model.get_decoder().layers:
                fully_shard(block)
            fully_shard(self)
        for module in self._shards():
            module.set_gradient_divide_factor(1.0)  # a sum over processes: the loop divides by all targets itself
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def forward(self, use: Callable[[Any], Answer]) -> Answer:
        return use(self.model)

    def parameters_of(self, parameters: Parameters) -> Parameters:
        """Those of `parameters`, by their names in the model, as they are now: sharding makes them anew."""
        if not self.sharded:
            return parameters
        current = dict(self.model.named_parameters())
        return {name: current[name] for name in parameters}

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Inside, every process holds the whole model, so that processes may call it unequally often."""
        for module in self._shards():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in self._shards():
                module.reshard()
                module.set_reshard_after_forward(not isinstance(module, Learner), recurse=False)

    def _shards(self) -> list[FSDPModule]:
        return [module for module in self.modules() if isinstance(module, FSDPModule)]


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
