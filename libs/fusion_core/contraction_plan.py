"""Contraction plans: torch-free arithmetic that says how narrow a contracted model becomes."""

import msgspec


class ContractionPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked for, and the uniform FFN width that the emitted model has in every layer.

    Plain transformers reads one width for all layers, so removing `contraction_ratio` of the channels of
    `layers_to_contract` layers is emitted as the same number of channels removed evenly (docs/contraction.md).
    """

    contraction_ratio: float
    layers: int
    layers_to_contract: int
    ffn_before: int
    ffn_after: int
    params_before: int
    params_after: int
