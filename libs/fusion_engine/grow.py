"""Depth growth: copies of old blocks, silenced where they write to the residual stream: at first nothing changes.

Method: LLaMA-Pro (arXiv 2401.02415), with every residual-writing projection zeroed, biases included.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_core import failpoints
from fusion_core.growth_plan import GrowthPlan

from fusion_engine.base_folder import BaseFolder
from fusion_engine.files import complete_or_absent
from fusion_engine.model_config import CONFIG_FILE
from fusion_engine.safetensors_stream import StoredTensor, TensorSource, ZeroTensor, write_model

# Everything beside the weights that loading and generating need; anything else in a base folder stays behind.
COMPANION_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def grow(base: BaseFolder, plan: GrowthPlan, folder: Path) -> None:
    """Write the grown model to `folder`, a slice at a time; the base is only read."""
    failpoints.hit("growth.before")
    with complete_or_absent(folder) as partial:
        write_model(partial, grown_tensors(base, plan))
        write_config(partial, grown_config(base, plan))
        copy_companions(base.path, partial)
    failpoints.hit("growth.after")


def new_blocks(plan: GrowthPlan) -> list[int]:
    """The numbers, in the grown stack, of the blocks that are new."""
    return [number for number, (_, new) in enumerate(plan.layout()) if new]


def grown_tensors(base: BaseFolder, plan: GrowthPlan) -> Mapping[str, TensorSource]:
    """Where each tensor of the grown model comes from."""
    family = base.family
    tensors: dict[str, TensorSource] = {}
    blocks: dict[int, dict[str, StoredTensor]] = {}
    for name, tensor in base.tensors.items():
        place = family.split(name)
        if place is None:
            tensors[name] = tensor
        else:
            blocks.setdefault(place[0], {})[place[1]] = tensor
    for number, (source, new) in enumerate(plan.layout()):
        for inner, tensor in blocks[source].items():
            silenced = new and family.writes_residual(inner)
            tensors[family.join(number, inner)] = ZeroTensor(tensor.dtype, tensor.shape) if silenced else tensor
    return tensors


def grown_config(base: BaseFolder, plan: GrowthPlan) -> dict[str, Any]:
    """The base's config with more blocks; lists of one entry a block take each new entry from its source block."""
    config = dict(base.config)
    config["num_hidden_layers"] = plan.layers_after
    for key in base.family.per_block_lists:
        entries = config.get(key)
        if isinstance(entries, list) and len(entries) == plan.layers_before:
            config[key] = [entries[source] for source, _ in plan.layout()]
    return config


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def copy_companions(source: Path, target: Path) -> None:
    """Copy the tokenizer's and the generation's files, as far as they exist."""
    for name in COMPANION_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
