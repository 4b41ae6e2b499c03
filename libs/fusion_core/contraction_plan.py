"""Contraction plans: torch-free arithmetic that says how narrow a contracted model becomes.

Plain transformers reads one FFN width for all layers, so that removing `contraction_ratio` of the channels of some
layers is emitted as the same number of channels removed from every layer (docs/contraction.md).
"""

import hashlib

import msgspec

from fusion_core.model_shapes import shape_of

DEFAULT_LAYERS = 8
RATIO_MIN, RATIO_MAX = 0.1, 0.9
_COARSE, _FINE, _COARSE_FROM = 128, 8, 2048


class ContractionPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked for, and the uniform FFN width that the emitted model has in every layer."""

    contraction_ratio: float
    layers: int
    layers_to_contract: int
    ffn_before: int
    ffn_after: int
    params_before: int
    params_after: int

    @property
    def requested_shrinkage(self) -> float:
        """The share of all parameters that the ratio and the layers ask for, before the width is rounded."""
        removed_channels = self.layers * (self.ffn_before - self.ffn_after)
        params_per_channel = (self.params_before - self.params_after) / removed_channels
        requested_channels = self.contraction_ratio * self.layers_to_contract * self.ffn_before
        return requested_channels * params_per_channel / self.params_before

    @property
    def achieved_shrinkage(self) -> float:
        """The share of all parameters that the emitted model lacks."""
        return 1.0 - self.params_after / self.params_before

    def sha256(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def plan_contraction(config: dict[str, object], ratio: float, layers: int | None = None) -> ContractionPlan:
    """Plan the removal of `ratio` of the FFN channels of `layers` layers (by default 8, or all of fewer).

    Raises UnsupportedArchitectureError, msgspec.ValidationError for a config that cannot be read, and ValueError for
    a ratio or a number of layers that the model does not have, or an FFN too narrow to remove anything from.
    """
    if not RATIO_MIN <= ratio <= RATIO_MAX:
        raise ValueError(f"contraction_ratio is {ratio}; it must lie between {RATIO_MIN} and {RATIO_MAX}")
    shape = shape_of(config)
    chosen = min(DEFAULT_LAYERS, shape.layers) if layers is None else layers
    if not 1 <= chosen <= shape.layers:
        raise ValueError(f"num_layers_to_contract is {chosen}; this model has {shape.layers} layers")
    width = emitted_width(shape.ffn, ratio * chosen / shape.layers)
    narrower = msgspec.structs.replace(shape, ffn=width)
    return ContractionPlan(
        contraction_ratio=ratio,
        layers=shape.layers,
        layers_to_contract=chosen,
        ffn_before=shape.ffn,
        ffn_after=width,
        params_before=shape.params,
        params_after=narrower.params,
    )


def emitted_width(ffn: int, share: float) -> int:
    """The multiple of 128 nearest to ffn * (1 - share); of 8 where the FFN has fewer than 2048 channels.

    At least one multiple stays and at least one channel goes. Multiples of 128 are what matrix kernels are made for;
    below 2048 channels such a step would be more than 6 % of the width. Raises ValueError for an FFN of 8 or fewer.
    """
    multiple = _COARSE if ffn >= _COARSE_FROM else _FINE
    widest = (ffn - 1) // multiple * multiple
    if widest == 0:
        raise ValueError(f"the FFN has {ffn} channels; contraction needs more than {multiple}")
    nearest = round(ffn * (1.0 - share) / multiple) * multiple
    return min(max(nearest, multiple), widest)
