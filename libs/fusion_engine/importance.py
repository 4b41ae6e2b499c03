"""How much each FFN channel matters, and each layer: statistics of what the down-projections read, and measured damage.

Channel scores, with x_j the j-th input of a layer's down-projection over the calibration text:

    flap    Var(x_j) * ||W_down[:, j]||_2^2     FLAP (arXiv 2312.11983): what a constant could not stand in for
    wanda   RMS(x_j) * ||W_down[:, j]||_2       Wanda (arXiv 2306.11695), summed over the outputs
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere

from fusion_engine.batch import collate
from fusion_engine.families import Family
from fusion_engine.packing import Row

_TOKENS_PER_BATCH = 4096


class ChannelStatistics:
    """Mean and variance of each of `channels` inputs, accumulated batch by batch in float64 (Chan et al., 1979)."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self._deviations = torch.zeros_like(self.mean)

    def add(self, inputs: torch.Tensor) -> None:
        """Take in inputs of shape (..., channels)."""
        values = inputs.detach().reshape(-1, self.mean.numel()).double()
        count, mean = len(values), values.mean(0)
        shift, total = mean - self.mean, self.count + count
        self._deviations += (values - mean).square_().sum(0) + shift.square() * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    @property
    def variance(self) -> torch.Tensor:
        return self._deviations / self.count

    @property
    def mean_square(self) -> torch.Tensor:
        return self.variance + self.mean.square()


def down_projections(model: Any, family: Family) -> list[torch.nn.Linear]:
    """The down-projection of each block's FFN, from the lowest block up."""
    modules = dict(model.named_modules())
    layers = int(model.config.num_hidden_layers)
    return [modules[family.join(layer, f"{family.ffn}.down_proj")] for layer in range(layers)]


@torch.no_grad()
def calibrate(model: Any, family: Family, rows: Sequence[Row]) -> list[ChannelStatistics]:
    """Statistics of the inputs of each layer's down-projection over `rows`."""
    projections = down_projections(model, family)
    statistics = [ChannelStatistics(module.in_features, module.weight.device) for module in projections]
    watch_inputs(model, projections, rows, [gathered.add for gathered in statistics])
    return statistics


def watch_inputs(
    model: Any,
    modules: Sequence[torch.nn.Module],
    rows: Sequence[Row],
    watchers: Sequence[Callable[[torch.Tensor], None]],
) -> None:
    """Run `rows` through the model and hand each module's input to its watcher."""
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, watcher=watcher: watcher(inputs[0]))
        for module, watcher in zip(modules, watchers, strict=True)
    ]
    try:
        for inputs in batches(rows, model.device):
            model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()


def channel_scores(importance: str, statistics: ChannelStatistics, weight: torch.Tensor) -> torch.Tensor:
    """The importance of each channel, shape (channels,); `weight` is the down-projection's, (hidden, channels)."""
    norms = weight.detach().double().square().sum(0)
    if importance == "flap":
        return statistics.variance * norms
    if importance == "wanda":
        return (statistics.mean_square * norms).sqrt()
    raise ValueError(f"importance is {importance!r}; flap and wanda are known")


def best_channels(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` channels of highest score, ascending, on the CPU; of equal scores the lower channel stays."""
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values.cpu()


@torch.no_grad()
def layer_damage(model: Any, family: Family, kept: Sequence[torch.Tensor], rows: Sequence[Row]) -> list[float]:
    """What each layer alone loses with `kept[layer]` as its only channels: mean KL from the whole model, in nats."""
    projections = down_projections(model, family)
    damage = torch.zeros(len(projections), dtype=torch.float64)
    tokens = 0
    for inputs in batches(rows, model.device, _TOKENS_PER_BATCH // 4):
        expected = _log_probabilities(model, inputs)
        for layer, module in enumerate(projections):
            with only_channels(module, kept[layer]):
                found = _log_probabilities(model, inputs)
            damage[layer] += float(F.kl_div(found, expected, reduction="sum", log_target=True))
        tokens += inputs["input_ids"].numel()
    return [float(total) / tokens for total in damage]


@contextmanager
def only_channels(module: torch.nn.Linear, kept: torch.Tensor) -> Iterator[None]:
    """Inside, the down-projection reads zeros in place of every channel but `kept`."""
    mask = torch.zeros(module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    mask[kept.to(mask.device)] = 1
    handle = module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * mask,))
    try:
        yield
    finally:
        handle.remove()


def choose_layers(damage: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` layers that lose least, ascending; the first layer only when all are asked for.

    In one small model halving the first layer cost most, in another least (docs/contraction.md); what is lost there is
    lost to every layer above, so the rule takes the safe side.
    """
    order = sorted(range(len(damage)), key=lambda layer: (layer == 0, damage[layer], layer))
    return tuple(sorted(order[:count]))


def batches(
    rows: Sequence[Row], device: torch.device, tokens: int = _TOKENS_PER_BATCH
) -> Iterator[dict[str, torch.Tensor]]:
    """What the model's forward takes by name, in batches of rows of equal length: statistics must see no padding."""
    for length, group in groupby(sorted(rows, key=lambda row: len(row.ids)), key=lambda row: len(row.ids)):
        equal = list(group)
        size = max(1, tokens // (length - 1))
        for start in range(0, len(equal), size):
            yield collate(equal[start : start + size], length - 1).to(device).inputs


def _log_probabilities(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(**inputs, use_cache=False).logits
    return F.log_softmax(logits.float(), dim=-1)
