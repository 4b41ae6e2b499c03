"""The final model: the grown folder with the trained tensors put in, an ordinary Hugging Face folder of safetensors.

Nothing that differs between equal runs enters it: no time, no job, no attempt.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_core import failpoints
from fusion_core.growth_plan import GrowthPlan
from fusion_core.trainer_protocol import Manifest
from torch import Tensor

from fusion_engine.base_folder import BaseFolder
from fusion_engine.ffn_branches import Branch, whole_name
from fusion_engine.files import build_manifest, complete_or_absent
from fusion_engine.grow import copy_companions, grown_config, grown_tensors, write_config
from fusion_engine.joined_tensors import JoinedTensor
from fusion_engine.safetensors_stream import MemoryTensor, TensorSource, write_model


def export(base: BaseFolder, plan: GrowthPlan, parameters: Mapping[str, Tensor], folder: Path) -> Manifest:
    """Write the grown model to `folder`, each tensor in the dtype that the base has for it, frozen ones as they are."""
    tensors = dict(grown_tensors(base, plan))
    for learned, parameter in parameters.items():
        name, branch = whole_name(learned, base.family)
        if name not in tensors:  # a tied head has a name of its own only where the base stores it twice
            continue
        tensors[name] = _with_branch(tensors[name], branch, MemoryTensor(parameter.data, tensors[name].dtype))
    return write_export(base, tensors, grown_config(base, plan), folder)


def _with_branch(whole: TensorSource, branch: Branch | None, learned: TensorSource) -> TensorSource:
    """`learned` in place of `whole`, or of its old or new part where it is one of a widened FFN."""
    if branch is None or not isinstance(whole, JoinedTensor):
        return learned
    old, new = (learned, whole.new) if branch == "old" else (whole.old, learned)
    return JoinedTensor(old, new, whole.dim)


def write_export(
    base: BaseFolder, tensors: Mapping[str, TensorSource], config: Mapping[str, Any], folder: Path
) -> Manifest:
    """Write a model with the base's companions, such as its tokenizer; `folder` is complete or absent."""
    failpoints.hit("export.before")
    with complete_or_absent(folder) as partial:
        write_model(partial, tensors)
        write_config(partial, dict(config))
        copy_companions(base.path, partial)
        manifest = build_manifest(partial)
    failpoints.hit("export.after")
    return manifest
