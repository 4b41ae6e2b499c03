"""A tiny random model of every family, with its own tokenizer and its family's traps switched on."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

VOCABULARY = 64
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
}
_SSM = {
    "mamba_d_ssm": 48,
    "mamba_n_heads": 6,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
    "mamba_n_groups": 2,
    "projectors_bias": True,
    "mlp_multipliers": [0.7, 1.3],
    "ssm_multipliers": [0.5, 0.8, 1.1, 1.2, 0.9],
    "key_multiplier": 0.6,
    "attention_out_multiplier": 1.4,
    "lm_head_multiplier": 0.5,
    "embedding_multiplier": 2.0,
}
# One or more models for each family, by name.
FAMILY_MODELS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, {"sliding_window": 8}),
    "qwen2": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "qwen3": (Qwen3Config, {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-windows": (Qwen3Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    "gemma2": (Gemma2Config, {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 8, "num_hidden_layers": 8, "query_pre_attn_scalar": 8}),
    "smollm3": (SmolLM3Config, {"mlp_bias": True, "use_sliding_window": True, "sliding_window": 8}),
    "falcon_h1": (FalconH1Config, _SSM | {"mamba_rms_norm": True}),
    "falcon_h1-gated": (FalconH1Config, _SSM | {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}),
}


def make_family_model(folder: Path, name: str, **overrides: Any) -> Path:
    """Write the model `name` of FAMILY_MODELS, its biases and norms random too, so that a forgotten one shows."""
    config_class, settings = FAMILY_MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config_class(**(_SIZES | settings | overrides))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    vocabulary = {"<unk>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.save_pretrained(folder)
    return folder
