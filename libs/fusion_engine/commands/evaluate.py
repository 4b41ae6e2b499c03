"""`fusion-engine evaluate`: the perplexity of a model on someone's data, measured as training jobs measure it."""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fusion_engine.commands import Subparsers
from fusion_engine.commands.parser import positive
from fusion_engine.model_config import check_seq_len, read_config

if TYPE_CHECKING:
    from fusion_engine.packing import PackedRows

DEFAULT_SEQ_LEN, DEFAULT_MAX_TOKENS = 1024, 1_000_000
_EPILOG = """\
DATA is JSONL, one row a line, or plain text, a row a paragraph; a folder means its .jsonl and .txt files. Rows are
  {"text": ...}                       every token counts
  {"prompt": ..., "completion": ...}  the completion counts
  {"messages": [...]}                 the assistant's turns count, as the model's own chat template writes them
  {"ids": [...]}                      token ids, such as a pool sampled from a base: every token counts

Rows are packed as for training: no row sees another, and a row longer than --seq-len is cut. Perplexities compare
between models with the same tokenizer, data and --seq-len only.

examples:
  fusion-engine evaluate ./Llama-3.2-1B heldout.jsonl
  fusion-engine evaluate ./grown pool.jsonl --seq-len 256         what the grown model kept of its base
  fusion-engine evaluate ./grown texts/ --max-tokens 100000 --json
"""


class _Report(msgspec.Struct, kw_only=True):
    """`loss` is in nats a token; `tokens` are those that count, of `rows` packed rows out of `rows_in_data`."""

    model: str
    perplexity: float
    loss: float
    tokens: int
    rows: int
    rows_in_data: int
    seq_len: int
    precision: str


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="the perplexity of a model on data",
        description="Print the perplexity of MODEL on DATA.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model folder")
    parser.add_argument("data", metavar="DATA", type=Path, nargs="+", help="files or folders")
    parser.add_argument(
        "--seq-len",
        metavar="N",
        type=positive,
        help=f"tokens that the model sees at once (the model's positions, at most {DEFAULT_SEQ_LEN})",
    )
    parser.add_argument(
        "--max-tokens",
        metavar="N",
        type=positive,
        default=DEFAULT_MAX_TOKENS,
        help="of more data, rows chosen evenly through all of it (%(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto is bf16 on a GPU and fp32 on a CPU (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    positions = read_config(arguments.model).get("max_position_embeddings")
    seq_len = arguments.seq_len or min(DEFAULT_SEQ_LEN, positions if isinstance(positions, int) else DEFAULT_SEQ_LEN)
    with tempfile.TemporaryDirectory(prefix="fusion-engine-") as folder:
        report = _evaluate(arguments, seq_len, Path(folder))
    print(msgspec.json.encode(report).decode() if arguments.json else _describe(report))
    return 0


def _evaluate(arguments: argparse.Namespace, seq_len: int, folder: Path) -> _Report:
    import torch
    from accelerate import Accelerator

    from fusion_engine.base_folder import check_weights, load_model, open_base
    from fusion_engine.evaluate import perplexity
    from fusion_engine.precision import compute_dtype

    base = open_base(arguments.model)
    check_weights(base)
    data = _pack(arguments.data, base, seq_len, folder)
    rows = data.spread(arguments.max_tokens)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    dtype = compute_dtype(arguments.precision, accelerator.device.type == "cpu")
    model = load_model(base.path, dtype).to(accelerator.device)
    value, tokens = perplexity(model, rows, accelerator, _track)
    return _Report(
        model=str(arguments.model),
        perplexity=value,
        loss=math.log(value),
        tokens=tokens,
        rows=len(rows),
        rows_in_data=len(data),
        seq_len=seq_len,
        precision=str(dtype).removeprefix("torch."),
    )


def _pack(paths: Sequence[Path], base: Any, seq_len: int, folder: Path) -> "PackedRows":
    """Raises RejectedError dataset_too_short where nothing is to be predicted, and for bad rows."""
    from fusion_engine.attention_mask import keeps_documents_apart
    from fusion_engine.local_shards import local_shards
    from fusion_engine.outcomes import RejectedError
    from fusion_engine.packing import pack
    from fusion_engine.training_data import row_tokenizer

    check_seq_len(base.config, seq_len)
    documents = row_tokenizer(base).documents(local_shards(paths, folder))
    data = pack(documents, folder, "data", seq_len, join=keeps_documents_apart(base.config))
    if not len(data):
        raise RejectedError("dataset_too_short", f"the data has {data.tokens} tokens, and none that is predicted")
    return data


def _track(batches: Sequence[Any]) -> Any:
    """A progress bar on stderr where a person looks at it."""
    from tqdm import tqdm

    return tqdm(batches, desc="evaluating", unit="batch", leave=False, disable=not sys.stderr.isatty())


def _describe(report: _Report) -> str:
    part = "" if report.rows == report.rows_in_data else f" of {report.rows_in_data:,}"
    return "\n".join(
        [
            f"perplexity  {report.perplexity:,.4f}",
            f"loss        {report.loss:.4f} nats a token",
            f"tokens      {report.tokens:,} in {report.rows:,}{part} rows of up to {report.seq_len:,}",
            f"precision   {report.precision}",
        ]
    )
