"""What a job trains and is measured on: its shards, rehearsal text and pool, tokenized once and packed on disk."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from fusion_core.job_spec import Hyperparams
from fusion_core.trainer_protocol import EngineRun, Notice

from fusion_engine.attention_mask import keeps_documents_apart
from fusion_engine.base_folder import BaseFolder, load_tokenizer
from fusion_engine.data_order import TrainingRows
from fusion_engine.evaluate import HELDOUT_TOKENS_LIMIT
from fusion_engine.model_config import check_seq_len
from fusion_engine.outcomes import RejectedError
from fusion_engine.packing import PackedRows, Row, pack
from fusion_engine.tokenize_rows import Document, RowTokenizer

_POOL_HELDOUT_EVERY = 10  # one line in ten of the pool is never rehearsed: retention is measured on it


@dataclass(frozen=True)
class TrainingData:
    """`training` is without end; `retention` is text sampled from the base and never rehearsed, None without a pool.

    `notices` say what the customer should know about the data.
    """

    training: TrainingRows
    heldout: list[Row]
    retention: list[Row] | None
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class RowSettings:
    """What decides the rows and their order."""

    seq_len: int
    replay_fraction: float
    seed: int

    @classmethod
    def of(cls, hyperparams: Hyperparams) -> "RowSettings":
        return cls(hyperparams.seq_len, hyperparams.replay_fraction, hyperparams.seed)


def prepare_data(
    folder: Path, run: EngineRun, base: BaseFolder, accelerator: Accelerator, settings: RowSettings
) -> TrainingData:
    """Tokenize and pack into `folder`; one process of each machine writes and the others wait for it.

    Raises RejectedError, on every rank: validation_failed for a seq_len beyond the model's positions,
    dataset_too_short, and what RowTokenizer.documents raises.
    """
    check_seq_len(base.config, settings.seq_len)
    fault: tuple[Any, ...] | None = None
    if accelerator.is_local_main_process:
        try:
            _write_rows(folder, run, base, settings.seq_len)
        except RejectedError as error:
            fault = (error.code, error.message, error.errors)
    raise_on_every_rank(fault, accelerator)
    train, heldout, rehearsal, pool, unseen = (PackedRows(folder, name, settings.seq_len) for name in _NAMES)
    _check_length(train, heldout)
    return TrainingData(
        TrainingRows(train, rehearsal, settings.replay_fraction, settings.seed, pool),
        heldout.spread(HELDOUT_TOKENS_LIMIT),
        unseen.spread(HELDOUT_TOKENS_LIMIT) if len(unseen) else None,
        _padding_notice(train),
    )


def _padding_notice(train: PackedRows) -> tuple[Notice, ...]:
    """Tells where most of what is trained, and paid for, is padding: rows of one document that is shorter."""
    lengths = train.lengths()
    filled = float(lengths.mean()) / train.seq_len
    if filled >= 0.5:
        return ()
    enough = max(8, 8 * math.ceil(float(np.quantile(lengths, 0.95)) / 8))
    advice = f"; with seq_len {enough} 95 % of the rows stay whole" if enough < train.seq_len else ""
    return (Notice(code="padding", message=f"{1 - filled:.0%} of the training positions are padding{advice}"),)


def raise_on_every_rank(fault: tuple[Any, ...] | None, accelerator: Accelerator) -> None:
    """The main process' fault: the others would wait for it for ever. Past this, every machine's files are written."""
    accelerator.wait_for_everyone()
    box = [fault]
    if accelerator.num_processes > 1:
        broadcast_object_list(box)
    if box[0] is not None:
        raise RejectedError(*box[0])


def _write_rows(folder: Path, run: EngineRun, base: BaseFolder, seq_len: int) -> None:
    rows = row_tokenizer(base)
    folder.mkdir(exist_ok=True)
    for name, documents in _sources(run, rows).items():
        pack(documents, folder, name, seq_len, join=keeps_documents_apart(base.config))


def row_tokenizer(base: BaseFolder) -> RowTokenizer:
    """Encodes rows as `base` reads them. Raises RejectedError: base_model_incomplete or base_model_corrupt."""
    tokenizer = load_tokenizer(base)
    if not tokenizer.is_fast:  # it cannot tell which ids are of the answer
        raise RejectedError("base_model_incomplete", "tokenizer.json is missing; import the model with it")
    return RowTokenizer(tokenizer, eos_id(tokenizer, base.config), int(base.config["vocab_size"]))


_NAMES = ("train", "heldout", "rehearsal", "pool", "pool-heldout")


def _sources(run: EngineRun, rows: RowTokenizer) -> dict[str, Iterator[Document]]:
    pool, unseen = _split_pool(rows.documents(run.pool_files)), _split_pool(rows.documents(run.pool_files))
    documents = (
        rows.documents(run.train_shards),
        rows.documents(run.heldout_shards),
        rows.documents(run.rehearsal_files),
        (document for is_heldout, document in pool if not is_heldout),
        (document for is_heldout, document in unseen if is_heldout),
    )
    return dict(zip(_NAMES, documents, strict=True))


def _split_pool(documents: Iterable[Document]) -> Iterator[tuple[bool, Document]]:
    for number, document in enumerate(documents):
        yield number % _POOL_HELDOUT_EVERY == _POOL_HELDOUT_EVERY - 1, document


def _check_length(train: PackedRows, heldout: PackedRows) -> None:
    if train.tokens > train.seq_len and len(train) and len(heldout):
        return
    counts = f"the dataset has {train.tokens} tokens to train on and {heldout.tokens} held out; "
    if train.tokens > train.seq_len and heldout.tokens > 1:
        detail = counts + "none of one part is an answer to be learned. Add rows with answers."
    else:
        detail = counts + f"one sequence takes {train.seq_len + 1} and the held-out part 2. Add text, or lower seq_len."
    raise RejectedError("dataset_too_short", detail)


def eos_id(tokenizer: Any, config: dict[str, Any]) -> int:
    """The id that ends a text. Raises RejectedError base_model_incomplete where neither names one."""
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else config.get("eos_token_id")
    if isinstance(eos, list) and eos:
        eos = eos[0]
    if not isinstance(eos, int):
        raise RejectedError("base_model_incomplete", "neither the tokenizer nor config.json names an EOS token")
    return eos
