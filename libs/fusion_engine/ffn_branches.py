"""A widened FFN as two FFNs side by side, the old channels and the new ones: their outputs add up to the whole's.

A gated FFN is a sum over its channels, so cutting it changes nothing but the order of that sum. With the old branch
computed by itself, every kernel sees the shapes that it sees in the base.
"""

import copy
from typing import Any, Literal

import torch
from torch import nn

from fusion_engine.families import Family

Branch = Literal["old", "new"]
_BRANCHES: tuple[Branch, ...] = ("old", "new")


class FfnBranches(nn.Module):
    """`old` and `new` read the same input, [..., hidden], and their outputs are added; the bias of the sum is old."""

    def __init__(self, whole: Any, old_channels: int) -> None:
        super().__init__()
        self.old = _branch(whole, slice(None, old_channels))
        self.new = _branch(whole, slice(old_channels, None))
        if self.new.down_proj.bias is not None:
            self.new.down_proj.bias.data.zero_()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.old(hidden) + self.new(hidden)
        return output


def split_ffns(model: Any, family: Family, old_channels: int) -> None:
    """Replace the FFN of every block, in place, by its branches; one FFN is in memory twice at a time."""
    for block in model.model.layers:
        setattr(block, family.ffn, FfnBranches(getattr(block, family.ffn), old_channels))


def whole_name(name: str, family: Family) -> tuple[str, Branch | None]:
    """The stored name of a parameter, and the branch it is a part for: ".mlp.new.up_proj." is of ".mlp.up_proj."."""
    for branch in _BRANCHES:
        part = f".{family.ffn}.{branch}."
        if part in name:
            return name.replace(part, f".{family.ffn}."), branch
    return name, None


def is_spare_bias(name: str, family: Family) -> bool:
    """Whether this is the new branch's output bias, which stays zero: the whole FFN has one, and it is old."""
    return name.endswith(f".{family.ffn}.new.down_proj.bias")


def _branch(whole: Any, channels: slice) -> Any:
    branch = copy.deepcopy(whole)
    for projection in (branch.gate_proj, branch.up_proj):
        projection.weight = _cut(projection.weight[channels])
        if projection.bias is not None:
            projection.bias = _cut(projection.bias[channels])
    branch.down_proj.weight = _cut(branch.down_proj.weight[:, channels])
    return branch


def _cut(part: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(part.detach().clone(memory_format=torch.contiguous_format))
