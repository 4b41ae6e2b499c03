"""Opening a base model: every file is there, every tensor is whole, the shape is the one the plan was made for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fusion_core.growth_plan import GrowthPlan
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fusion_engine.families import FAMILIES, Family
from fusion_engine.finite_tensor import FiniteTensor
from fusion_engine.model_config import CONFIG_FILE, read_config, read_shape
from fusion_engine.outcomes import RejectedError
from fusion_engine.safetensors_stream import TORCH_DTYPES, DamagedFileError, StoredTensor, read_header

INDEX_FILE, WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"
_PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
Fault = dict[str, object]


@dataclass(frozen=True)
class BaseFolder:
    """A verified base model: nothing of it is loaded but its config and the places of its tensors."""

    path: Path
    family: Family
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]


def open_base(path: Path, plan: GrowthPlan | None = None) -> BaseFolder:
    """Verify the folder, and that it is the one `plan` was made for; read where its tensors lie.

    Raises RejectedError: base_model_incomplete, base_model_corrupt or unsupported_architecture, naming every fault.
    """
    if not path.is_dir():
        raise _rejected("base_model_incomplete", [{"file": str(path), "detail": "no such folder"}])
    config = read_config(path)
    shape = read_shape(config)
    tensors = _read_tensors(path)
    _compare_with_architecture(path, tensors)
    if plan is not None and (shape.layers, shape.params) != (plan.layers_before, plan.params_before):
        detail = (
            f"it has {shape.layers} blocks and {shape.params} parameters; the growth plan was made for"
            f" {plan.layers_before} and {plan.params_before}"
        )
        raise _rejected("base_model_corrupt", [{"file": CONFIG_FILE, "detail": detail}])
    return BaseFolder(path, FAMILIES[shape.family], config, tensors)


def check_weights(base: BaseFolder) -> None:
    """Read all weights. Raises RejectedError base_model_corrupt for NaN or infinity: such a model computes nothing.

    For those who load the model as it is; growing looks at what passes by.
    """
    try:
        for name, tensor in base.tensors.items():
            for _ in FiniteTensor.of(name, tensor).chunks():
                pass
    except DamagedFileError as error:
        raise RejectedError("base_model_corrupt", f"{error}. Import an intact copy of the model again.") from error


def load_tokenizer(base: BaseFolder) -> Any:
    """The base's own tokenizer; code that comes with it is never run.

    Special tokens beyond the embedding are let pass, because published models have some that no text holds (Gemma 3's
    image token in its text-only sizes); a row that does hold one is refused when it is tokenized.

    Raises RejectedError: base_model_incomplete where there is none, base_model_corrupt where its ids do not fit.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
        ids = tokenizer.get_vocab()
    except Exception as error:  # the tokenizers library raises plain Exception for a bad file
        code = "base_model_corrupt" if has_tokenizer(base.path) else "base_model_incomplete"
        detail = f"{type(error).__name__}: {error}"
        raise _rejected(code, [{"file": "tokenizer.json", "detail": detail}]) from error
    vocabulary = read_shape(base.config).vocab
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    beyond = sorted((number, token) for token, number in ids.items() if number >= vocabulary and token not in special)
    if beyond:
        detail = (
            f"{len(beyond)} of its tokens have no row in the model's embedding, which has {vocabulary}; the first is"
            f" {beyond[0][1]!r} with id {beyond[0][0]}"
        )
        raise _rejected("base_model_corrupt", [{"file": "tokenizer.json", "detail": detail}])
    return tokenizer


def has_tokenizer(path: Path) -> bool:
    """Whether there is anything to load a tokenizer from; a stand-alone growth does without."""
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def load_model(folder: Path, dtype: torch.dtype | None = None) -> Any:
    """An AutoModelForCausalLM of a local folder, in `dtype` or its own, with an attention that is deterministic.

    Raises RejectedError where the folder's config.json is none of a family that Fusion knows.
    """
    family = FAMILIES[read_shape(read_config(folder)).family]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype or "auto",
        attn_implementation=family.attention,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )


def _rejected(code: str, faults: list[Fault]) -> RejectedError:
    first = f"{faults[0].get('file', 'the base model')}: {faults[0]['detail']}"
    more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return RejectedError(code, f"{first}{more}. Import the whole, intact folder again.", tuple(faults))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise _rejected("base_model_incomplete", [{"file": path.name, "detail": "the file is missing"}]) from error
    except ValueError as error:
        raise _rejected("base_model_corrupt", [{"file": path.name, "detail": f"not JSON: {error}"}]) from error
    if not isinstance(content, dict):
        raise _rejected("base_model_corrupt", [{"file": path.name, "detail": "not a JSON object"}])
    return content


def _shard_names(path: Path) -> list[str]:
    if not (path / INDEX_FILE).exists():
        return [WEIGHTS_FILE]
    weight_map = _read_json(path / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _rejected("base_model_corrupt", [{"file": INDEX_FILE, "detail": "weight_map is missing or empty"}])
    names = sorted({str(name) for name in weight_map.values()})
    foreign = [name for name in names if Path(name).name != name]
    if foreign:
        faults: list[Fault] = [{"file": INDEX_FILE, "detail": f"{name!r} is not a file name"} for name in foreign]
        raise _rejected("base_model_corrupt", faults)
    return names


def _read_tensors(path: Path) -> dict[str, StoredTensor]:
    names = _shard_names(path)
    missing: list[Fault] = [
        {"file": name, "detail": "the file is missing"} for name in names if not (path / name).is_file()
    ]
    if missing:
        _refuse_pickled(path)
        raise _rejected("base_model_incomplete", missing)
    tensors: dict[str, StoredTensor] = {}
    damaged: list[Fault] = []
    for name in names:
        try:
            tensors.update(read_header(path / name))
        except DamagedFileError as error:
            damaged.append({"file": name, "detail": str(error)})
    if damaged:
        raise _rejected("base_model_corrupt", damaged)
    return tensors


def _refuse_pickled(path: Path) -> None:
    """Raises RejectedError base_model_corrupt where the weights are there, but pickled."""
    detail = "is pickled, which could run code when it is loaded; convert the model to safetensors"
    pickled: list[Fault] = [
        {"file": file.name, "detail": detail} for file in sorted(path.iterdir()) if file.suffix in _PICKLED
    ]
    if pickled:
        raise _rejected("base_model_corrupt", pickled)


def _compare_with_architecture(path: Path, tensors: dict[str, StoredTensor]) -> None:
    """Compare with the parameters that transformers itself would create; buffers and tied copies may come on top."""
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise _rejected("base_model_corrupt", [{"file": CONFIG_FILE, "detail": str(error)}]) from error
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing: list[Fault] = [{"tensor": n, "detail": f"tensor {n} is missing"} for n in expected if n not in tensors]
    if missing:
        raise _rejected("base_model_incomplete", missing)
    wrong: list[Fault] = [
        {"tensor": name, "detail": f"tensor {name} is {found.dtype} {found.shape}, not a float tensor {shape}"}
        for name, shape in expected.items()
        if (found := tensors[name]).shape != shape or found.dtype not in TORCH_DTYPES
    ]
    if wrong:
        raise _rejected("base_model_corrupt", wrong)
