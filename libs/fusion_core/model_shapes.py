"""The shape and the exact parameter count of a model, from its config.json alone and without torch.

Every family that Fusion can grow is one entry of FAMILY_CONFIGS. A config.json may leave out what its config class has
a default for, so the defaults of transformers are part of the table (5.17 to 5.23; tests compare them and the counts
with the classes themselves).
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

Config = dict[str, object]
_Size = Annotated[int, Meta(ge=1, le=2**31)]


class UnsupportedArchitectureError(ValueError):
    """The model's architecture is not one Fusion can grow."""


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers that decide a model's parameter count. Widths are in channels, counts in parameters."""

    family: str
    layers: int
    group: int  # blocks that repeat as one pattern of attention types: depth changes by whole groups
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    block_norms: int = 2
    ssm_params: int = 0  # of one block's Mamba-2 mixer
    ssm_state: int = 0  # numbers that one block keeps of a sequence, however long it is

    @property
    def ffn_channel_params(self) -> int:
        """What one FFN channel holds: a row of gate and up, a column of down, and the rows' biases."""
        return 3 * self.hidden + (2 if self.mlp_bias else 0)

    @property
    def block_params(self) -> int:
        """Parameters of one decoder block: attention, FFN, norms and, where it has one, the SSM mixer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * (queries + keys)
        attention += (queries + 2 * keys) * self.qkv_bias + self.hidden * self.out_bias
        ffn = self.ffn * self.ffn_channel_params + self.hidden * self.mlp_bias
        norms = self.block_norms * self.hidden + 2 * self.head_dim * self.qk_norm
        return attention + ffn + norms + self.ssm_params

    @property
    def head_params(self) -> int:
        """Parameters of the output head, which is the embedding itself where it is tied to it."""
        return self.vocab * self.hidden

    @property
    def params(self) -> int:
        embeddings = self.head_params * (1 if self.tied else 2)
        return embeddings + self.layers * self.block_params + self.hidden


@dataclass(frozen=True)
class _FamilyConfig:
    """What a family's config class and modelling code decide: defaults, and which biases a config can switch on."""

    family: str
    defaults: Config
    switches: tuple[str, ...] = ()  # of attention_bias and mlp_bias; any other family ignores these keys
    qkv_bias: bool = False
    qk_norm: bool = False
    block_norms: int = 2
    pattern: int = 1  # period of attention types where the config has no layer_types
    has_ssm: bool = False


def _defaults(
    layers: int, hidden: int, ffn: int, heads: int, kv_heads: int | None, vocab: int, **more: object
) -> Config:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
    } | more


_FALCON_H1_SSM: Config = {
    "mamba_d_ssm": 1024,
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "mamba_rms_norm": False,
    "projectors_bias": False,
}
_BOTH = ("attention_bias", "mlp_bias")

FAMILY_CONFIGS = {
    "LlamaForCausalLM": _FamilyConfig("llama", _defaults(32, 4096, 11008, 32, None, 32000), switches=_BOTH),
    "MistralForCausalLM": _FamilyConfig("mistral", _defaults(32, 4096, 14336, 32, 8, 32000)),
    "Qwen2ForCausalLM": _FamilyConfig("qwen2", _defaults(32, 4096, 22016, 32, 32, 151936), qkv_bias=True),
    "Qwen3ForCausalLM": _FamilyConfig(
        "qwen3", _defaults(32, 4096, 22016, 32, 32, 151936, head_dim=128), switches=("attention_bias",), qk_norm=True
    ),
    "Gemma2ForCausalLM": _FamilyConfig(
        "gemma2",
        _defaults(26, 2304, 9216, 8, 4, 256000, head_dim=256, tie_word_embeddings=True),
        switches=("attention_bias",),
        block_norms=4,
        pattern=2,
    ),
    "Gemma3ForCausalLM": _FamilyConfig(
        "gemma3",
        _defaults(26, 2304, 9216, 8, 4, 262208, head_dim=256, tie_word_embeddings=True),
        switches=("attention_bias",),
        qk_norm=True,
        block_norms=4,
        pattern=6,
    ),
    "SmolLM3ForCausalLM": _FamilyConfig(
        "smollm3", _defaults(36, 2048, 11008, 16, 4, 128256, tie_word_embeddings=True), switches=_BOTH
    ),
    "FalconH1ForCausalLM": _FamilyConfig(
        "falcon_h1", _defaults(32, 4096, 14336, 32, 8, 128000) | _FALCON_H1_SSM, switches=_BOTH, has_ssm=True
    ),
}


def family_of(config: Config) -> str:
    """The family name of a Hugging Face config.

    Raises UnsupportedArchitectureError, which names what works.
    """
    return _family_config(config).family


def shape_of(config: Config) -> ModelShape:
    """Read the shape from a config.

    Raises UnsupportedArchitectureError, or msgspec.ValidationError for a value that describes no model.
    """
    family = _family_config(config)
    merged = family.defaults | config
    read = msgspec.convert(merged, _Config)
    attention_bias = read.attention_bias and "attention_bias" in family.switches
    ssm = msgspec.convert(merged, _SsmConfig) if family.has_ssm else None
    return ModelShape(
        family=family.family,
        layers=read.num_hidden_layers,
        group=_pattern_period(merged, family.pattern),
        hidden=read.hidden_size,
        ffn=read.intermediate_size,
        heads=read.num_attention_heads,
        kv_heads=read.num_key_value_heads or read.num_attention_heads,
        head_dim=read.head_dim or read.hidden_size // read.num_attention_heads,
        vocab=read.vocab_size,
        tied=read.tie_word_embeddings,
        qkv_bias=family.qkv_bias or attention_bias,
        out_bias=attention_bias,
        mlp_bias=read.mlp_bias and "mlp_bias" in family.switches,
        qk_norm=family.qk_norm,
        block_norms=family.block_norms,
        ssm_params=ssm.params(read.hidden_size) if ssm else 0,
        ssm_state=ssm.state(read.hidden_size) if ssm else 0,
    )


class _Config(msgspec.Struct, kw_only=True):
    num_hidden_layers: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size | None
    vocab_size: _Size
    tie_word_embeddings: bool
    head_dim: _Size | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


class _SsmConfig(msgspec.Struct, kw_only=True):
    """Falcon-H1's Mamba-2 mixer (arXiv 2405.21060, as FalconH1Mixer builds it)."""

    mamba_d_ssm: _Size | None
    mamba_n_heads: _Size
    mamba_n_groups: _Size
    mamba_d_state: _Size
    mamba_d_conv: _Size
    mamba_expand: _Size
    mamba_conv_bias: bool
    mamba_proj_bias: bool
    mamba_rms_norm: bool
    projectors_bias: bool

    def params(self, hidden: int) -> int:
        inner, conv = self._widths(hidden)
        projected = inner + conv + self.mamba_n_heads  # gate, (x, B, C), time steps
        in_proj = projected * (hidden + self.mamba_proj_bias)
        convolution = conv * (self.mamba_d_conv + self.mamba_conv_bias)
        per_head = 3 * self.mamba_n_heads  # A_log, D, dt_bias
        out_proj = hidden * (inner + self.projectors_bias)
        return in_proj + convolution + per_head + inner * self.mamba_rms_norm + out_proj

    def state(self, hidden: int) -> int:
        inner, conv = self._widths(hidden)
        return inner * self.mamba_d_state + conv * self.mamba_d_conv

    def _widths(self, hidden: int) -> tuple[int, int]:
        inner = self.mamba_d_ssm or self.mamba_expand * hidden
        return inner, inner + 2 * self.mamba_n_groups * self.mamba_d_state


def _family_config(config: Config) -> _FamilyConfig:
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    family = FAMILY_CONFIGS.get(name) if isinstance(name, str) else None
    if family is None:
        known = ", ".join(FAMILY_CONFIGS)
        raise UnsupportedArchitectureError(f"architecture {name!r} cannot be grown; these can: {known}")
    return family


def _pattern_period(config: Config, default: int) -> int:
    """The smallest period of the attention types, for the families whose types form a pattern that runtimes rely on."""
    if default == 1:
        return 1
    types = config.get("layer_types")
    if isinstance(types, list) and types:
        return next(period for period in range(1, len(types) + 1) if types[period:] == types[:-period])
    pattern = config.get("sliding_window_pattern")
    return pattern if isinstance(pattern, int) and pattern >= 1 else default
