"""Growth plans: torch-free arithmetic that says where new capacity goes and how large the model becomes.

Depth growth inserts copies of existing blocks whose residual-writing projections are zeroed, so that the grown model
computes exactly what the base computes (LLaMA-Pro, arXiv 2401.02415).
"""

import hashlib
from typing import Literal

import msgspec

DEFAULT_GROWTH_FACTOR = 1.52
SUPPORTED_ARCHITECTURES = {"LlamaForCausalLM": "llama"}


class UnsupportedArchitectureError(ValueError):
    """The model's architecture is not one Fusion can grow."""


class GrowthPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A validated description of the added capacity.

    Depth: new block j copies and follows old block `new_after[j]`. Width: every block's FFN goes from `ffn_before` to
    `ffn_after` channels. No growth: `new_after` is empty and the widths are equal. How many parameters are added is
    fixed when the job is created; the diagnosis may still choose other places for as many blocks.
    """

    axis: Literal["depth", "width"] = "depth"
    layers_before: int
    new_after: tuple[int, ...] = ()
    ffn_before: int = 0
    ffn_after: int = 0
    params_before: int
    params_after: int

    @property
    def layers_after(self) -> int:
        return self.layers_before + len(self.new_after)

    @property
    def params_added(self) -> int:
        return self.params_after - self.params_before

    def layout(self) -> list[tuple[int, bool]]:
        """The grown stack from bottom to top as (source block, is it new)."""
        stack: list[tuple[int, bool]] = []
        for old in range(self.layers_before):
            stack.append((old, False))
            stack.extend((old, True) for after in self.new_after if after == old)
        return stack

    def sha256(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class ModelShape(msgspec.Struct, frozen=True):
    """The numbers of a Hugging Face Llama config that decide its parameter count."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    @property
    def block_params(self) -> int:
        """Parameters of one decoder block: four attention projections, three FFN projections, two norms."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * queries + 2 * keys)
        biases = (queries + 2 * keys + self.hidden) if self.attention_bias else 0
        ffn = 3 * self.hidden * self.ffn + ((2 * self.ffn + self.hidden) if self.mlp_bias else 0)
        return attention + biases + ffn + 2 * self.hidden

    @property
    def params(self) -> int:
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * self.block_params + self.hidden


def family_of(config: dict[str, object]) -> str:
    """The family name of a Hugging Face config.

    Raises UnsupportedArchitectureError, which names what works.
    """
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name not in SUPPORTED_ARCHITECTURES:
        known = ", ".join(SUPPORTED_ARCHITECTURES)
        raise UnsupportedArchitectureError(f"architecture {name!r} cannot be grown; these can: {known}")
    return SUPPORTED_ARCHITECTURES[str(name)]


class _LlamaConfig(msgspec.Struct):
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


def shape_of(config: dict[str, object]) -> ModelShape:
    """Read the shape from a config. Raises UnsupportedArchitectureError or msgspec.ValidationError."""
    family_of(config)
    read = msgspec.convert(config, _LlamaConfig)
    return ModelShape(
        layers=read.num_hidden_layers,
        hidden=read.hidden_size,
        ffn=read.intermediate_size,
        heads=read.num_attention_heads,
        kv_heads=read.num_key_value_heads or read.num_attention_heads,
        head_dim=read.head_dim or read.hidden_size // read.num_attention_heads,
        vocab=read.vocab_size,
        tied=read.tie_word_embeddings,
        attention_bias=read.attention_bias,
        mlp_bias=read.mlp_bias,
    )


def plan_depth_growth(config: dict[str, object], growth_factor: float = DEFAULT_GROWTH_FACTOR) -> GrowthPlan:
    """Spread the new blocks evenly: new block j of k follows old block round((j+1)*L/k)-1.

    k is the count that brings parameters nearest to `growth_factor` times the base's; at least one block unless the
    factor is 1.0, which means no growth.
    """
    if not 1.0 <= growth_factor <= 4.0:
        raise ValueError(f"growth_factor is {growth_factor}; it must lie between 1.0 and 4.0")
    shape = shape_of(config)
    added = round((growth_factor - 1.0) * shape.params / shape.block_params)
    if growth_factor > 1.0:
        added = max(1, added)
    positions = tuple(round((j + 1) * shape.layers / added) - 1 for j in range(added))
    return GrowthPlan(
        layers_before=shape.layers,
        new_after=tuple(max(0, position) for position in positions),
        params_before=shape.params,
        params_after=shape.params + added * shape.block_params,
    )
