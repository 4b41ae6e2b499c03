"""Verifying a Hugging Face model folder without torch: every fault is found and named at once, nothing is modified."""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from fusion_core.model_shapes import UnsupportedArchitectureError, family_of, shape_of

from fusion_orchestrator.safetensors_header import HeaderError, TensorInfo, read_header

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}

_PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_IMPORTED = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja", ".md"})
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_BUFFERS = ".rotary_emb.inv_freq"  # written by old releases of transformers, computed by new ones: not parameters
_MAX_FILES = 2000
_MAX_JSON_BYTES = 256 * 1024 * 1024

INCOMPLETE, CORRUPT, UNSUPPORTED = "base_model_incomplete", "base_model_corrupt", "unsupported_architecture"


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong with a folder: a code of fusion_core.problems, the file, and what to do."""

    code: str
    file: str
    message: str


class BaseModelRejectedError(ValueError):
    """The folder cannot become a base model. `faults` names everything that is wrong with it."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{fault.file}: {fault.message} [{fault.code}]" for fault in faults))


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A verified folder. `files` are the names to import, sorted; `skipped` are the others."""

    root: Path
    config: dict[str, Any]
    family: str
    params: int
    precision: str
    files: tuple[str, ...]
    skipped: tuple[str, ...]


def verify_model_folder(root: Path) -> ModelFolder:
    """Check config, architecture, weights and tokenizer of `root`.

    Raises BaseModelRejectedError with every fault that was found.
    """
    faults: list[Fault] = []
    if not root.is_dir():
        raise BaseModelRejectedError([Fault(INCOMPLETE, str(root), "is not a folder")])
    files, skipped = _list_files(root, faults)
    config = _read_config(root, faults)
    tensors = _read_weights(root, files, faults)
    _check_tokenizer(root, files, config, faults)
    precision = _check_tensors(tensors, config, faults) if tensors and config else ""
    if faults:
        raise BaseModelRejectedError(faults)
    return ModelFolder(
        root=root,
        config=config,
        family=family_of(config),
        params=shape_of(config).params,
        precision=precision,
        files=tuple(files),
        skipped=tuple(skipped),
    )


def _list_files(root: Path, faults: list[Fault]) -> tuple[list[str], list[str]]:
    """The names at the top of the folder to import, and those to leave: sub-folders, hidden files, other kinds."""
    files, skipped = [], []
    real_root = root.resolve()
    for path in sorted(root.iterdir()):
        if path.suffix in _PICKLED:
            message = "is pickled, which could run code when it is loaded; convert it to safetensors and remove it"
            faults.append(Fault(CORRUPT, path.name, message))
        elif path.name.startswith(".") or path.is_dir() or not (path.suffix in _IMPORTED or path.suffix == ""):
            skipped.append(path.name)
        elif not path.resolve().is_relative_to(real_root):
            message = "is a link that leaves the folder; copy the folder with `cp -rL` and import the copy"
            faults.append(Fault(CORRUPT, path.name, message))
        elif not path.is_file():
            faults.append(Fault(INCOMPLETE, path.name, "is not a regular file"))
        else:
            files.append(path.name)
    if len(files) > _MAX_FILES:
        faults.append(Fault(CORRUPT, root.name, f"has {len(files)} files; at most {_MAX_FILES} are allowed"))
    return files, skipped


def _read_json(path: Path, faults: list[Fault]) -> dict[str, Any]:
    """A JSON object, or {} and a fault."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"is larger than {_MAX_JSON_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        faults.append(Fault(INCOMPLETE, path.name, f"cannot be read: {error.strerror}"))
    except (ValueError, RecursionError) as error:  # msgspec's errors and a bad encoding are ValueErrors
        faults.append(Fault(CORRUPT, path.name, f"is not a JSON object: {error}"))
    return {}


def _read_config(root: Path, faults: list[Fault]) -> dict[str, Any]:
    """config.json when Fusion can grow what it describes; {} and a fault otherwise."""
    config = _read_json(root / CONFIG_FILE, faults)
    if not config:
        return {}
    if "quantization_config" in config:
        message = "describes quantised weights, which cannot be grown; import the unquantised model"
        faults.append(Fault(UNSUPPORTED, CONFIG_FILE, message))
    if "auto_map" in config:
        faults.append(Fault(UNSUPPORTED, CONFIG_FILE, "asks for custom code (auto_map), which is never run"))
    try:
        shape_of(config)
    except UnsupportedArchitectureError as error:
        faults.append(Fault(UNSUPPORTED, CONFIG_FILE, str(error)))
    except (msgspec.ValidationError, ArithmeticError) as error:
        faults.append(Fault(CORRUPT, CONFIG_FILE, f"does not describe a model: {error}"))
    else:
        return config
    return {}


def _read_weights(root: Path, files: list[str], faults: list[Fault]) -> dict[str, TensorInfo]:
    """Every tensor of the folder by name; {} where a file is missing or broken, with the faults."""
    present = {name for name in files if name.endswith(".safetensors")}
    placed: dict[str, str] | None = None
    if INDEX_FILE in files:
        placed = _read_index(root, faults)
        if placed is None:
            return {}
        expected = set(placed.values())
    else:
        expected = {SINGLE_FILE}
    for name in sorted(expected - present):
        advice = f"is missing; the weights are {SINGLE_FILE}, or shards named by {INDEX_FILE}"
        faults.append(Fault(INCOMPLETE, name, advice))
    for name in sorted(present - expected):
        faults.append(Fault(CORRUPT, name, "holds weights that no index names; remove it or add the index"))
    tensors: dict[str, TensorInfo] = {}
    before = len(faults)
    for name in sorted(present & expected):
        header = _read_shard(root / name, faults)
        for tensor in sorted(header.keys() & tensors.keys()):
            faults.append(Fault(CORRUPT, name, f"holds tensor {tensor!r}, which another shard holds too"))
        if placed is not None and header:
            _compare_with_index(name, set(header), placed, faults)
        tensors |= header
    return tensors if len(faults) == before and present >= expected else {}


def _read_index(root: Path, faults: list[Fault]) -> dict[str, str] | None:
    """Tensor -> shard; None and a fault when the index cannot be read. Names that could leave the folder are faults."""
    index = _read_json(root / INDEX_FILE, faults)
    if not index:
        return None
    try:
        placed = msgspec.convert(index.get("weight_map"), dict[str, str])
    except msgspec.ValidationError as error:
        faults.append(Fault(CORRUPT, INDEX_FILE, f"has no valid weight_map: {error}"))
        return None
    safe = {
        tensor: shard
        for tensor, shard in placed.items()
        if PurePosixPath(shard).name == shard and shard.endswith(".safetensors")
    }
    for shard in sorted(set(placed.values()) - set(safe.values())):
        message = f"names {shard!r}, which is not the name of a safetensors file beside it"
        faults.append(Fault(CORRUPT, INDEX_FILE, message))
    return safe


def _read_shard(path: Path, faults: list[Fault]) -> dict[str, TensorInfo]:
    try:
        return read_header(path)
    except HeaderError as error:
        faults.append(Fault(CORRUPT, path.name, f"{error}; download it again"))
    except OSError as error:
        faults.append(Fault(INCOMPLETE, path.name, f"cannot be read: {error.strerror}"))
    return {}


def _compare_with_index(shard: str, held: set[str], placed: dict[str, str], faults: list[Fault]) -> None:
    named = {tensor for tensor, where in placed.items() if where == shard}
    if missing := sorted(named - held):
        faults.append(Fault(INCOMPLETE, shard, f"lacks {len(missing)} tensors that the index names: {missing[0]!r}"))
    if extra := sorted(held - named):
        faults.append(Fault(CORRUPT, shard, f"holds {len(extra)} tensors that the index does not: {extra[0]!r}"))


def _check_tensors(tensors: dict[str, TensorInfo], config: dict[str, Any], faults: list[Fault]) -> str:
    """Compare the parameter count with the config's; answers the precision of most parameters."""
    shape = shape_of(config)
    parameters = {name: tensor for name, tensor in tensors.items() if not name.endswith(_BUFFERS)}
    if shape.tied:
        parameters.pop("lm_head.weight", None)  # the embedding once more
    counted = sum(tensor.items for tensor in parameters.values())
    if counted != shape.params:
        message = f"holds {counted:,} parameters and {CONFIG_FILE} describes {shape.params:,}: files of two models?"
        faults.append(Fault(CORRUPT, "weights", message))
    by_dtype: Counter[str] = Counter()
    for tensor in parameters.values():
        by_dtype[tensor.dtype] += tensor.items
    if strange := sorted(by_dtype.keys() - PRECISIONS.keys()):
        message = f"are {', '.join(strange)}; weights must be {', '.join(PRECISIONS)}"
        faults.append(Fault(UNSUPPORTED, "weights", message))
        return ""
    return PRECISIONS[by_dtype.most_common(1)[0][0]]


def _check_tokenizer(root: Path, files: list[str], config: dict[str, Any], faults: list[Fault]) -> None:
    if not any(set(choice) <= set(files) for choice in _TOKENIZERS):
        choices = ", or ".join(" with ".join(choice) for choice in _TOKENIZERS)
        faults.append(Fault(INCOMPLETE, "tokenizer", f"is missing; a folder needs {choices}"))
    elif "tokenizer.json" in files:
        tokenizer = _read_json(root / "tokenizer.json", faults)
        largest = max(_token_ids(tokenizer), default=-1)
        if tokenizer and config and largest >= shape_of(config).vocab:
            message = f"has id {largest}, past the {shape_of(config).vocab} entries of the embedding"
            faults.append(Fault(CORRUPT, "tokenizer.json", message))


def _token_ids(tokenizer: dict[str, Any]) -> list[int]:
    """Every id a fast tokenizer can produce: the vocabulary is a table (BPE, WordPiece) or a list (Unigram).

    Special tokens that were added do not count: published models have some that no text holds and that have no row in
    the embedding (Gemma 3's image token in its text-only sizes). The engine refuses a row that does hold one.
    """
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids: list[Any] = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab or ())))
    added = tokenizer.get("added_tokens")
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    ids += [entry.get("id") for entry in entries if entry.get("special") is not True]
    return [number for number in ids if isinstance(number, int)]
