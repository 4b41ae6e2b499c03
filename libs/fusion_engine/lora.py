"""LoRA adapters (arXiv 2106.09685) through peft: put beside a frozen model's projections, merged into plain weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_engine.base_folder import BaseFolder
from fusion_engine.checkpoint import Parameters
from fusion_engine.safetensors_stream import TORCH_DTYPES, MemoryTensor, StoredTensor, TensorSource, byte_size

# Adapters are scaled by 32 / rank, so that one learning rate suits every rank ("LoRA Without Regret", Schulman et al.,
# 2025); at the default rank the scale is 1.
LORA_ALPHA = 32
# The fused Mamba kernels read this projection's weight themselves and would pass an adapter by; peft refuses it too.
_NOT_ADAPTED = ("mamba.out_proj",)


@dataclass(frozen=True)
class Adapter:
    """The two factors of one projection, fp32: `down` has shape (rank, inputs), `up` (outputs, rank)."""

    down: Tensor
    up: Tensor
    scale: float

    def delta(self) -> Tensor:
        return (self.up.detach() @ self.down.detach()) * self.scale


def attach_adapters(model: Any, base: BaseFolder, rank: int) -> tuple[Parameters, dict[str, Adapter]]:
    """Freeze `model` and give every linear projection of its blocks an adapter that at first adds nothing.

    Returns the adapters' parameters, fp32, by name, and the adapters by the name of the weight that they change.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and only this kind of job needs it

    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and base.family.split(name) and not name.endswith(_NOT_ADAPTED)
    ]
    settings = LoraConfig(r=rank, lora_alpha=LORA_ALPHA, target_modules=targets, lora_dropout=0.0, bias="none")
    model.requires_grad_(False)
    inject_adapter_in_model(settings, model)
    parameters: Parameters = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            parameters[name] = parameter
    return parameters, {f"{name}.weight": _adapter(model.get_submodule(name)) for name in targets}


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Inside, the model computes what it computed before it got adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _adapter(layer: Any) -> Adapter:
    (name,) = layer.active_adapters
    return Adapter(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def merged_tensors(base: BaseFolder, adapters: Mapping[str, Adapter]) -> dict[str, TensorSource]:
    """Where each tensor of the merged model comes from: adapted ones are computed while they are written."""
    merged: dict[str, TensorSource] = dict(base.tensors)
    for name, adapter in adapters.items():
        merged[name] = _MergedTensor(base.tensors[name], adapter)
    return merged


@dataclass(frozen=True)
class _MergedTensor:
    """A stored weight plus its adapter's product, added in fp32 and rounded once to the stored dtype."""

    stored: StoredTensor
    adapter: Adapter

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def chunks(self) -> Iterator[bytes]:
        content = bytearray(byte_size(self.stored))
        place = 0
        for chunk in self.stored.chunks():
            content[place : place + len(chunk)] = chunk
            place += len(chunk)
        weight = torch.frombuffer(content, dtype=TORCH_DTYPES[self.dtype]).reshape(self.shape)
        yield from MemoryTensor(weight.float() + self.adapter.delta().cpu(), self.dtype).chunks()
