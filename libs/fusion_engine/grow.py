"""Growth that at first changes nothing, for every family, streamed from file to file.

Depth: copies of old blocks, silenced where they write to the residual stream (LLaMA-Pro, arXiv 2401.02415, with every
residual-writing projection zeroed, biases included). Width: more FFN channels, whose gate and up rows are copies of
random old ones and whose down columns are zero (as in "Grow, Don't Overwrite", arXiv 2603.08647, but with zeros instead
of halved copies, so that the old weights stay what they were). Peak memory is a few bands of the largest tensor.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fusion_core import failpoints
from fusion_core.growth_plan import GrowthPlan
from transformers import AutoConfig

from fusion_engine.base_folder import BaseFolder
from fusion_engine.families import EMBEDDING, HEAD
from fusion_engine.files import complete_or_absent
from fusion_engine.finite_tensor import FiniteTensor
from fusion_engine.joined_tensors import CopiedRows, JoinedTensor
from fusion_engine.model_config import CONFIG_FILE
from fusion_engine.outcomes import RejectedError
from fusion_engine.safetensors_stream import (
    SHARD_BYTES,
    DamagedFileError,
    StoredTensor,
    TensorSource,
    Wrote,
    ZeroTensor,
    write_model,
)

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
    "chat_template.json",
)
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")  # what most licences want to be passed on


def grow(
    base: BaseFolder,
    plan: GrowthPlan,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    wrote: Wrote | None = None,
) -> None:
    """Write the grown model to `folder`, a slice at a time; the base is only read.

    Raises RejectedError base_model_corrupt for weights that are not finite or end early, and OSError, such as ENOSPC
    for a full disk; `folder` is complete or absent.
    """
    failpoints.hit("growth.before")
    with complete_or_absent(folder) as partial:
        try:
            write_model(partial, grown_tensors(base, plan), shard_bytes, wrote)
        except DamagedFileError as error:
            raise RejectedError("base_model_corrupt", f"{error}. Import an intact copy of the model again.") from error
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
    blocks: dict[int, dict[str, FiniteTensor]] = {}
    for name, tensor in base.tensors.items():
        place = family.split(name)
        if place is None:
            tensors[name] = FiniteTensor.of(name, tensor)
        else:
            blocks.setdefault(place[0], {})[place[1]] = FiniteTensor.of(name, tensor)
    for number, (source, new) in enumerate(plan.layout()):
        rows = _copied_channels(plan, source)
        for inner, tensor in blocks[source].items():
            name = family.join(number, inner)
            if not new:
                tensors[name] = _widened(tensor, family.ffn_channels_dim(inner), rows)
            elif family.writes_residual(inner):
                tensors[name] = ZeroTensor(tensor.dtype, tensor.shape)
            else:
                tensors[name] = tensor.unchecked  # its original, which is always there too, is looked at
    if plan.own_head:
        tensors[HEAD] = base.tensors[EMBEDDING]
    return tensors


def _copied_channels(plan: GrowthPlan, block: int) -> tuple[int, ...]:
    """The old channels that a block's new ones copy: random, each as often as any other, the same for every run."""
    added = plan.ffn_after - plan.ffn_before
    random = np.random.default_rng((plan.ffn_before, plan.ffn_after, block))
    rounds = [random.permutation(plan.ffn_before) for _ in range(0, added, plan.ffn_before or 1)]
    return tuple(sorted(np.concatenate(rounds)[:added].tolist())) if rounds else ()


def _widened(tensor: StoredTensor, dim: int | None, rows: tuple[int, ...]) -> TensorSource:
    if dim is None or not rows:
        return tensor
    if dim == 0:
        return JoinedTensor(tensor, CopiedRows(tensor, rows), dim)
    return JoinedTensor(tensor, ZeroTensor(tensor.dtype, (tensor.shape[0], len(rows))), dim)


def grown_config(base: BaseFolder, plan: GrowthPlan) -> dict[str, Any]:
    """The base's config with more blocks or channels.

    Lists of one entry a block take each new entry from its source block. A list that the base leaves to its config
    class is written out, because the class would count it afresh from the new number of blocks.
    """
    config = dict(base.config) | ({"tie_word_embeddings": False} if plan.own_head else {})
    if plan.axis == "width":
        return config | {"intermediate_size": plan.ffn_after}
    if not plan.new_after:
        return config
    full = AutoConfig.from_pretrained(base.path, local_files_only=True)
    for key in base.family.per_block_lists:
        entries = config.get(key) or getattr(full, key, None)
        if isinstance(entries, list) and len(entries) >= plan.layers_before:
            config[key] = [entries[source] for source, _ in plan.layout()]
    windowless = config.get("max_window_layers", getattr(full, "max_window_layers", None))
    if isinstance(windowless, int):  # the first layers of Qwen 2 and 3, which have no sliding window
        config["max_window_layers"] = windowless + sum(source < windowless for source in plan.new_after)
    return config | {"num_hidden_layers": plan.layers_after}


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def copy_companions(source: Path, target: Path) -> None:
    """Copy the files of tokenizer, generation and licence, as far as they exist."""
    licences = (path.name for pattern in _LICENCES for path in source.glob(pattern))
    for name in (*COMPANION_FILES, *licences):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
