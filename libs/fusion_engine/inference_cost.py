"""What a model costs to run, from its shape."""

import msgspec
from fusion_core.growth_plan import GrowthPlan
from fusion_core.model_shapes import ModelShape

_BF16_BYTES = 2


class InferenceCost(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes in bf16: of all parameters, of the attention cache for each token, of the SSM state for each sequence.

    Sliding-window layers stop growing at their window; their cache is counted like that of the others.
    """

    weights: int
    cache_per_token: int
    state_per_sequence: int

    @classmethod
    def of(cls, shape: ModelShape, plan: GrowthPlan | None = None) -> "InferenceCost":
        """The cost of the model, or of the model as `plan` grows it."""
        layers = shape.layers if plan is None else plan.layers_after
        return cls(
            weights=_BF16_BYTES * (shape.params if plan is None else plan.params_after),
            cache_per_token=_BF16_BYTES * 2 * layers * shape.kv_heads * shape.head_dim,
            state_per_sequence=_BF16_BYTES * layers * shape.ssm_state,
        )
