"""What the engine must know of each model family: where its blocks are and what writes to the residual stream.

The numbers of each family, which need no tensors, are in fusion_core.model_shapes.
"""

import re
from dataclasses import dataclass

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # in every family
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Family:
    """Names of one family, as its checkpoints and its config spell them.

    `residual_writers` are the modules of a block whose output is added to the residual stream: with these at zero,
    weights and biases, a new block computes the identity. `ffn` is the gated FFN: a gate_proj, an up_proj and a
    down_proj. `per_block_lists` are config keys that hold one entry for each block.
    `attention` is the implementation that transformers runs: Gemma 2 caps its attention logits, which torch's fused
    attention cannot.
    """

    residual_writers: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    ffn: str = "mlp"
    per_block_lists: tuple[str, ...] = ("layer_types",)
    attention: str = "sdpa"

    def split(self, name: str) -> tuple[int, str] | None:
        """(block number, name inside the block) of a tensor, or None for one outside the blocks."""
        match = _BLOCK.fullmatch(name)
        return None if match is None else (int(match[1]), match[2])

    def join(self, block: int, inner: str) -> str:
        return f"model.layers.{block}.{inner}"

    def writes_residual(self, inner: str) -> bool:
        return inner.rpartition(".")[0] in self.residual_writers

    def ffn_channels_dim(self, inner: str) -> int | None:
        """The dimension of a block's tensor that runs over the FFN's channels; None where none does."""
        module, _, kind = inner.rpartition(".")
        if module in (f"{self.ffn}.gate_proj", f"{self.ffn}.up_proj"):
            return 0
        return 1 if (module, kind) == (f"{self.ffn}.down_proj", "weight") else None


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma2": Family(attention="eager"),
    "gemma3": Family(),
    "smollm3": Family(per_block_lists=("layer_types", "no_rope_layers")),
    "falcon_h1": Family(
        per_block_lists=(),
        residual_writers=("self_attn.o_proj", "mamba.out_proj", "feed_forward.down_proj"),
        ffn="feed_forward",
    ),
}
