"""Which families keep the documents of a packed row apart, and how.

Where `position_ids` start again at 0 with each document, `attention_mask` is None and there is no cache, transformers
builds a block-diagonal causal mask by itself (`masking_utils.find_packed_sequence_indices`), for eager and sdpa, for
full and sliding attention. Rotary positions are then those that each document would have alone.

An SSM also carries its state and the last inputs of its convolution over the boundary. Falcon-H1's kernels would stop
that with `seq_idx`, but transformers' PyTorch path refuses it, and the layout of the rows must not depend on what is
installed. So a row of Falcon-H1 holds one document or one piece of a long one, and the rest of the row is padding,
which comes last and therefore changes nothing before it; training cuts off what it can (Batch.trimmed).
"""

from collections.abc import Mapping
from typing import Any

_CARRIES_STATE = ("falcon_h1",)  # config.json's model_type


def keeps_documents_apart(config: Mapping[str, Any]) -> bool:
    """Whether a row of this model (its config.json) may hold several documents without one seeing another."""
    return config.get("model_type") not in _CARRIES_STATE
