"""Hyperparameters as options: each field of a struct of fusion_core.job_spec, with its bounds, default and meaning."""

import argparse
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from msgspec import inspect as types

from fusion_engine.outcomes import RejectedError

Settings = TypeVar("Settings", bound=msgspec.Struct)

# What each does, in a line; docs/training.md has the reasons.
MEANINGS: Mapping[str, str] = {
    "turns": "complete training passes; the model is measured and saved at the end of each",
    "cycles": "parts of a turn, at whose ends the model is measured",
    "steps_per_cycle": "optimizer updates in a cycle",
    "train_steps": "updates in a turn, in place of cycles x steps_per_cycle",
    "lr": "peak learning rate, of the new parameters",
    "seq_len": "tokens in a row",
    "batch_size": "rows computed at once, over all processes",
    "gradient_accumulation": "micro-batches in an update",
    "growth_factor": "parameters after / before; 1.0 grows nothing, and everything learns",
    "layers_added": "so many new layers, in place of growth_factor",
    "growth_axis": "new layers, or wider FFNs",
    "growth_placement": "where new layers go: where the data needs them, the upper half of the stack, or all of it",
    "train_scope": "what learns: only what was added, or everything",
    "own_head": "a head of its own for a model whose head is its embedding; left out, where growth_factor pays for it",
    "old_lr_scale": "share of lr for the copied old weights, with train_scope all",
    "replay_fraction": "share of rows that rehearse what the base knew",
    "retain": "how far old weights go back toward the base at export",
    "warmup": "share of all updates in which the rate rises",
    "weight_decay": "AdamW's decay, of matrices only",
    "max_grad_norm": "longer gradients are cut to this norm",
    "eval_every": "measure each so many updates, in place of at the cycles' ends",
    "precision": "what is computed in; auto is bf16 on a GPU and fp32 on a CPU",
    "deterministic": "kernels that give the same bits again, so that a resumed run equals an undisturbed one",
    "seed": "decides the order of rows and every random draw",
}


def add_hyperparam_options(
    parser: argparse.ArgumentParser,
    kind: type[msgspec.Struct],
    *left_out: str,
    meanings: Mapping[str, str] = MEANINGS,
) -> None:
    """An option for each field of `kind` but `left_out`; it is absent from the parsed arguments where not given."""
    described = types.type_info(kind)
    assert isinstance(described, types.StructType)
    group = parser.add_argument_group("hyperparameters")
    for field in described.fields:
        if field.name in left_out:
            continue
        option, accepted = f"--{field.name.replace('_', '-')}", _without_none(field.type)
        default = "none" if field.default is None else str(field.default)
        meaning = meanings[field.name]
        if isinstance(accepted, types.BoolType):
            group.add_argument(
                option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=f"{meaning} ({default})"
            )
        elif isinstance(accepted, types.LiteralType):
            choices = [str(value) for value in accepted.values]
            help_text = f"{meaning} ({default})"
            group.add_argument(option, choices=choices, default=argparse.SUPPRESS, help=help_text)
        else:
            help_text = f"{meaning}; {_bounds(accepted)} ({default})"
            group.add_argument(option, metavar="X", default=argparse.SUPPRESS, help=help_text)


def hyperparams_from(arguments: argparse.Namespace, kind: type[Settings]) -> Settings:
    """The settings that the options ask for. Raises RejectedError validation_failed, naming every bad option."""
    names = set(kind.__struct_fields__)
    given = {name: value for name, value in vars(arguments).items() if name in names}
    refuse_faults({name: why for name, value in given.items() if (why := _fault(kind, name, value))})
    return msgspec.convert(given, kind, strict=False)


def refuse_faults(faults: Mapping[str, str]) -> None:
    """Raises RejectedError validation_failed if there are faults, given by the names of hyperparameters."""
    told = [f"--{name.replace('_', '-')}: {why}" for name, why in faults.items()]
    if told:
        raise RejectedError("validation_failed", told[0], tuple({"detail": one} for one in told))


def _fault(kind: type[msgspec.Struct], name: str, value: object) -> str | None:
    try:
        msgspec.convert({name: value}, kind, strict=False)
    except msgspec.ValidationError as error:
        return re.sub(r" - at `\$\.\w+`", "", str(error))
    return None


def _without_none(accepted: types.Type) -> types.Type:
    if isinstance(accepted, types.UnionType):
        return next(member for member in accepted.types if not isinstance(member, types.NoneType))
    return accepted


def _bounds(accepted: types.Type) -> str:
    lowest, above = getattr(accepted, "ge", None), getattr(accepted, "gt", None)
    highest = next(
        value for value in (getattr(accepted, "le", None), getattr(accepted, "lt", None)) if value is not None
    )
    return f"{lowest:,} to {highest:,}" if lowest is not None else f"above {above:,}, to {highest:,}"
