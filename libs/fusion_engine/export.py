"""The final model: the grown folder with the trained tensors put in, an ordinary Hugging Face folder of safetensors.

Nothing that differs between equal runs enters it: no time, no job, no attempt.
"""

from pathlib import Path

from fusion_core import failpoints
from fusion_core.growth_plan import GrowthPlan
from fusion_core.trainer_protocol import Manifest

from fusion_engine.base_folder import BaseFolder
from fusion_engine.checkpoint import Parameters
from fusion_engine.files import build_manifest, complete_or_absent
from fusion_engine.grow import copy_companions, grown_config, grown_tensors, write_config
from fusion_engine.safetensors_stream import MemoryTensor, write_model


def export(base: BaseFolder, plan: GrowthPlan, parameters: Parameters, folder: Path) -> Manifest:
    """Write the model to `folder`, each tensor in the dtype that the base has for it, frozen ones byte for byte."""
    failpoints.hit("export.before")
    tensors = dict(grown_tensors(base, plan))
    for name, parameter in parameters.items():
        if name in tensors:  # a tied head has a name of its own only where the base stores it twice
            tensors[name] = MemoryTensor(parameter.data, tensors[name].dtype)
    with complete_or_absent(folder) as partial:
        write_model(partial, tensors)
        write_config(partial, grown_config(base, plan))
        copy_companions(base.path, partial)
        manifest = build_manifest(partial)
    failpoints.hit("export.after")
    return manifest
