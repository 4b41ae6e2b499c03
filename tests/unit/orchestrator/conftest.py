"""A tiny Llama folder, written without any library: what `verify_model_folder` accepts, for tests to break."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}
LAYER = {
    "input_layernorm.weight": (8,),
    "post_attention_layernorm.weight": (8,),
    "self_attn.q_proj.weight": (8, 8),
    "self_attn.k_proj.weight": (4, 8),
    "self_attn.v_proj.weight": (4, 8),
    "self_attn.o_proj.weight": (8, 8),
    "mlp.gate_proj.weight": (16, 8),
    "mlp.up_proj.weight": (16, 8),
    "mlp.down_proj.weight": (8, 16),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (32, 8),
    "lm_head.weight": (32, 8),
    "model.norm.weight": (8,),
    **{f"model.layers.{layer}.{name}": shape for layer in (0, 1) for name, shape in LAYER.items()},
}


def safetensors_bytes(names: Iterable[str], shapes: dict[str, tuple[int, ...]] = SHAPES, dtype: str = "F32") -> bytes:
    """A safetensors file of zeros."""
    width = {"F32": 4, "BF16": 2, "I8": 1}[dtype]
    header, position = {}, 0
    for name in names:
        size = width
        for dimension in shapes[name]:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [position, position + size]}
        position += size
    encoded = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(position)


class Folder:
    """A model folder on disk, with the few edits that tests make."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write_json("config.json", CONFIG)
        self.write_json("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0, "b": 31}}})
        (path / "model.safetensors").write_bytes(safetensors_bytes(SHAPES))

    def write_json(self, name: str, content: object) -> None:
        (self.path / name).write_text(json.dumps(content))

    def change_config(self, **changes: object) -> None:
        self.write_json("config.json", CONFIG | changes)

    def shard(self) -> None:
        """Replace the single file by two shards and their index."""
        (self.path / "model.safetensors").unlink()
        names = sorted(SHAPES)
        placed = {}
        for number, part in enumerate((names[:8], names[8:]), start=1):
            shard = f"model-{number:05d}-of-00002.safetensors"
            (self.path / shard).write_bytes(safetensors_bytes(part))
            placed |= dict.fromkeys(part, shard)
        self.write_json("model.safetensors.index.json", {"metadata": {}, "weight_map": placed})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "tiny-llama"
    path.mkdir()
    return Folder(path)


@pytest.fixture
def shapes() -> dict[str, tuple[int, ...]]:
    return SHAPES


@pytest.fixture
def make_file() -> Callable[..., bytes]:
    return safetensors_bytes
