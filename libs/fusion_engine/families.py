"""What the engine must know of each model family: where its blocks are and what writes to the residual stream."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Tensor names of one family, as its checkpoints spell them.

    `block_prefix` precedes a block's number. `residual_writers` are the modules of a block whose output is added to
    the residual stream: with these at zero, weights and biases, a new block computes the identity.
    `per_block_lists` are config keys that hold one entry for each block.
    """

    block_prefix: str
    residual_writers: tuple[str, ...]
    per_block_lists: tuple[str, ...]

    def split(self, name: str) -> tuple[int, str] | None:
        """(block number, name inside the block) of a tensor, or None for one outside the blocks."""
        match = re.fullmatch(re.escape(self.block_prefix) + r"(\d+)\.(.+)", name)
        return None if match is None else (int(match[1]), match[2])

    def join(self, block: int, inner: str) -> str:
        return f"{self.block_prefix}{block}.{inner}"

    def writes_residual(self, inner: str) -> bool:
        return inner.rpartition(".")[0] in self.residual_writers


FAMILIES = {
    "llama": Family(
        block_prefix="model.layers.",
        residual_writers=("self_attn.o_proj", "mlp.down_proj"),
        per_block_lists=("layer_types", "no_rope_layers"),
    )
}
