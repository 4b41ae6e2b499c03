"""Reading config.json: no torch, no weights, and every fault a RejectedError."""

import json
from pathlib import Path
from typing import Any

import msgspec
from fusion_core.growth_plan import Axis, GrowthPlan, Placement, plan_growth
from fusion_core.model_shapes import ModelShape, UnsupportedArchitectureError, shape_of

from fusion_engine.outcomes import RejectedError

CONFIG_FILE = "config.json"


def read_config(model: Path) -> dict[str, Any]:
    """config.json of a model folder, or a config file itself.

    Raises RejectedError base_model_incomplete or base_model_corrupt.
    """
    path = model / CONFIG_FILE if model.is_dir() else model
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{path}: there is no such file; give a folder with a {CONFIG_FILE}"
        raise RejectedError("base_model_incomplete", message) from error
    except ValueError as error:
        raise RejectedError("base_model_corrupt", f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise RejectedError("base_model_corrupt", f"{path}: not a JSON object")
    return config


def read_shape(config: dict[str, Any]) -> ModelShape:
    """Raises RejectedError unsupported_architecture or base_model_corrupt."""
    try:
        return shape_of(config)
    except UnsupportedArchitectureError as error:
        raise RejectedError("unsupported_architecture", str(error)) from error
    except msgspec.ValidationError as error:
        raise RejectedError("base_model_corrupt", f"{CONFIG_FILE} does not describe a model: {error}") from error


def plan_of(
    config: dict[str, Any],
    *,
    growth_factor: float,
    layers_added: int | None = None,
    axis: Axis = "depth",
    placement: Placement = "upper",
    own_head: bool | None = None,
) -> GrowthPlan:
    """`plan_growth` of a config that may be wrong. Raises RejectedError for a bad config or an impossible request."""
    read_shape(config)
    try:
        return plan_growth(
            config,
            growth_factor=growth_factor,
            layers_added=layers_added,
            axis=axis,
            placement=placement,
            own_head=own_head,
        )
    except ValueError as error:
        raise RejectedError("validation_failed", str(error)) from error


def check_seq_len(config: dict[str, Any], seq_len: int) -> None:
    """Raises RejectedError validation_failed where a sequence has more positions than the model (its config.json)."""
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and seq_len > longest:
        detail = f"seq_len {seq_len} is above this base model's limit; use {longest}"
        fault: dict[str, object] = {"pointer": "/hyperparams/seq_len", "detail": detail}
        raise RejectedError("validation_failed", detail, (fault,))
