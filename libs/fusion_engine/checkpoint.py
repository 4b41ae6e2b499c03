"""Checkpoints: what training changed and nothing else, as safetensors and JSON; complete or absent.

    trained.safetensors     the parameters that learn, fp32
    optimizer.safetensors   <parameter>.exp_avg, .exp_avg_sq, .step of AdamW
    state.json              progress, random states of every rank, and what the checkpoint belongs to
    manifest.json           written last: sizes and SHA-256 of the others

The learning rate and the data order are functions of the step, so they need no state of their own.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import torch
from fusion_core import failpoints
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import CHECKPOINT_FORMAT_VERSION, Manifest
from safetensors.torch import load_file

from fusion_engine.files import complete_or_absent, write_manifest
from fusion_engine.progress import Progress
from fusion_engine.safetensors_stream import MemoryTensor, write_file

TRAINED_FILE, OPTIMIZER_FILE, STATE_FILE = "trained.safetensors", "optimizer.safetensors", "state.json"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
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


def identity_of(*parts: object) -> str:
    """The SHA-256 of what decides the shape of the work: its kind, its plan, its own hyperparameters."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def save_checkpoint(
    folder: Path, state: CheckpointState, parameters: Parameters, optimizer: torch.optim.Optimizer
) -> Manifest:
    """Write the checkpoint to `folder`, which appears only when it is whole and on disk."""
    failpoints.hit("checkpoint_file.before")
    moments = {
        f"{name}.{key}": MemoryTensor.of(optimizer.state[parameter][key])
        for name, parameter in parameters.items()
        for key in _MOMENTS
        if parameter in optimizer.state
    }
    with complete_or_absent(folder) as partial:
        write_file(partial / TRAINED_FILE, {name: MemoryTensor.of(p.data) for name, p in parameters.items()})
        write_file(partial / OPTIMIZER_FILE, moments)
        (partial / STATE_FILE).write_bytes(msgspec.json.encode(state))
        manifest = write_manifest(partial)
    failpoints.hit("checkpoint_file.after")
    return manifest


def read_state(folder: Path, identity: str, hyperparams: Hyperparams, world_size: int) -> CheckpointState:
    """Read state.json. Raises CheckpointError if it is unreadable or belongs to another job or another world size."""
    try:
        state = msgspec.json.decode((folder / STATE_FILE).read_bytes(), type=CheckpointState)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{folder / STATE_FILE}: {error}") from error
    found = (state.format_version, state.identity, state.hyperparams, state.world_size)
    wanted = (CHECKPOINT_FORMAT_VERSION, identity, hyperparams, world_size)
    if found != wanted:
        raise CheckpointError(f"{folder} belongs to another job: it has {found}, this job {wanted}")
    return state


def load_parameters(folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer) -> None:
    """Load parameters and moments in place. Raises CheckpointError unless names and shapes are exactly the expected."""
    trained = load_file(folder / TRAINED_FILE)
    moments = load_file(folder / OPTIMIZER_FILE)
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    _require_equal(folder / TRAINED_FILE, {name: tensor.shape for name, tensor in trained.items()}, shapes)
    moment_shapes = {
        f"{name}.{key}": torch.Size() if key == "step" else shape for name, shape in shapes.items() for key in _MOMENTS
    }
    if moments:  # absent when every step so far was skipped
        _require_equal(folder / OPTIMIZER_FILE, {name: tensor.shape for name, tensor in moments.items()}, moment_shapes)
    for name, parameter in parameters.items():
        parameter.data.copy_(trained[name])
        if moments:
            optimizer.state[parameter] = {key: moments[f"{name}.{key}"].to(parameter.device) for key in _MOMENTS}


def _require_equal(path: Path, found: dict[str, torch.Size], wanted: dict[str, torch.Size]) -> None:
    if found != wanted:
        differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise CheckpointError(f"{path} does not fit the model: {', '.join(differing[:5])}")
