"""Checkpoints: what training changed and nothing else, as safetensors and JSON; complete or absent.

    trained.safetensors     the parameters that learn, fp32
    optimizer.safetensors   <parameter>.exp_avg, .exp_avg_sq, .step of AdamW
    state.json              progress, random states of every rank, and what the checkpoint belongs to
    manifest.json           written last: sizes and SHA-256 of the others

The learning rate and the data order are functions of the step, so they need no state of their own. The tensors are
whole whatever the number of processes: sharded ones are gathered before they come here.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from fusion_core import failpoints
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import CHECKPOINT_FORMAT_VERSION, MANIFEST_FILE, Manifest
from msgspec.structs import fields
from safetensors.torch import load_file

from fusion_engine.files import build_manifest, complete_or_absent, write_manifest
from fusion_engine.progress import Progress
from fusion_engine.safetensors_stream import MemoryTensor, write_file

TRAINED_FILE, OPTIMIZER_FILE, STATE_FILE = "trained.safetensors", "optimizer.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
Parameters = dict[str, torch.nn.Parameter]


class CheckpointError(Exception):
    """The checkpoint cannot be resumed from: a part is missing or it belongs to another job."""


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True):
    """state.json. `identity` stands for the work that the checkpoint belongs to, as `identity_of` makes it."""

    format_version: int
    identity: str
    hyperparams: Hyperparams
    world_size: int
    progress: Progress
    random_states: tuple[dict[str, Any], ...]  # one for each rank


@dataclass(frozen=True)
class TrainedTensors:
    """What training changes: parameters by name, and the optimizer's moments by <parameter>.<moment>.

    There are no moments before the first update.
    """

    parameters: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, parameters: Parameters, optimizer: torch.optim.Optimizer) -> "TrainedTensors":
        """Those in use, not copies."""
        moments = {
            f"{name}.{key}": optimizer.state[parameter][key]
            for name, parameter in parameters.items()
            for key in MOMENTS
            if parameter in optimizer.state
        }
        return cls({name: parameter.data for name, parameter in parameters.items()}, moments)


def identity_of(kind: str, *parts: msgspec.Struct) -> str:
    """The SHA-256 of what decides the shape of the work: its kind, its plan, its own hyperparameters.

    Fields at their defaults are left out: one that a later release adds parts no running job from its checkpoints.
    """
    said = [
        {field.encode_name: value for field in fields(part) if (value := getattr(part, field.name)) != field.default}
        for part in parts
    ]
    return hashlib.sha256(msgspec.json.encode([kind, *said], order="sorted")).hexdigest()


def write_checkpoint(folder: Path, state: CheckpointState, tensors: TrainedTensors) -> Manifest:
    """Write the checkpoint to `folder`, which appears only when it is whole and on disk."""
    failpoints.hit("checkpoint_file.before")
    with complete_or_absent(folder) as partial:
        for name, content in ((TRAINED_FILE, tensors.parameters), (OPTIMIZER_FILE, tensors.moments)):
            write_file(partial / name, {key: MemoryTensor.of(tensor) for key, tensor in content.items()})
        (partial / STATE_FILE).write_bytes(msgspec.json.encode(state))
        manifest = write_manifest(partial)
    failpoints.hit("checkpoint_file.after")
    return manifest


def read_state(folder: Path, identity: str, hyperparams: Hyperparams, world_size: int) -> CheckpointState:
    """state.json of the checkpoint in `folder`.

    Raises CheckpointError if it is unreadable or belongs to another job or another number of processes.
    """
    path = folder / STATE_FILE
    try:
        state = msgspec.json.decode(path.read_bytes(), type=CheckpointState)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    found = (state.format_version, state.identity, state.hyperparams, state.world_size)
    wanted = (CHECKPOINT_FORMAT_VERSION, identity, hyperparams, world_size)
    if found != wanted:
        raise CheckpointError(f"{folder} belongs to another job: it has {found}, this job {wanted}")
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder of them; one whose files are not what its manifest says is passed over."""
    for candidate in sorted(folder.glob("[0-9]*"), reverse=True):
        try:
            manifest = msgspec.json.decode((candidate / MANIFEST_FILE).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            continue
        if build_manifest(candidate) == manifest:
            return candidate
    return None


def read_tensors(folder: Path, shapes: Mapping[str, torch.Size]) -> TrainedTensors:
    """The tensors of a checkpoint. Raises CheckpointError unless names and shapes are exactly the expected."""
    trained, moments = load_file(folder / TRAINED_FILE), load_file(folder / OPTIMIZER_FILE)
    _require_equal(folder / TRAINED_FILE, {name: tensor.shape for name, tensor in trained.items()}, shapes)
    expected = {
        f"{name}.{key}": torch.Size() if key == "step" else shape for name, shape in shapes.items() for key in MOMENTS
    }
    if moments:  # absent when every step so far was skipped
        _require_equal(folder / OPTIMIZER_FILE, {name: tensor.shape for name, tensor in moments.items()}, expected)
    return TrainedTensors(trained, moments)


def _require_equal(path: Path, found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size]) -> None:
    if found != wanted:
        differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise CheckpointError(f"{path} does not fit the model: {', '.join(differing[:5])}")
