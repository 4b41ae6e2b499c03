"""The text of a contraction: what channels are scored on, what heals the model and what it is measured on.

Without a dataset everything is text that the source wrote itself at temperature 1. With one, channels are scored and
perplexity is measured on the dataset, and half of the healing rows are still the source's own: they keep what the
dataset does not mention.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from fusion_core.trainer_protocol import ContractRun

from fusion_engine.attention_mask import keeps_documents_apart
from fusion_engine.base_folder import BaseFolder
from fusion_engine.data_order import TrainingRows
from fusion_engine.evaluate import HELDOUT_TOKENS_LIMIT
from fusion_engine.model_config import check_seq_len
from fusion_engine.outcomes import RejectedError
from fusion_engine.packing import PackedRows, Row, pack
from fusion_engine.reporter import Reporter
from fusion_engine.run_directory import POOL_FOLDER, TOKENS_FOLDER
from fusion_engine.sample import POOL_FILE, write_pool
from fusion_engine.tokenize_rows import Document
from fusion_engine.training_data import raise_on_every_rank, row_tokenizer

SAMPLED_ROWS, SAMPLED_HELDOUT_ROWS = 768, 64
SAMPLED_SHARE = 0.5
CALIBRATION_TOKENS, DAMAGE_TOKENS = 32_768, 8_192


@dataclass(frozen=True)
class HealingText:
    """`training` is without end; the lists hold at most about as many tokens as their use needs.

    `retention` is text of the source where the model is measured on a dataset, and None where `heldout` is that.
    """

    training: TrainingRows
    calibration: list[Row]
    damage: list[Row]
    heldout: list[Row]
    retention: list[Row] | None


def prepare_text(
    run_dir: Path, run: ContractRun, base: BaseFolder, accelerator: Accelerator, reporter: Reporter
) -> HealingText:
    """Sample from the source unless a pool came with the job, and tokenize the dataset if there is one.

    Raises RejectedError: validation_failed for a seq_len beyond the source's positions, dataset_too_short for less than
    one row, and what RowTokenizer raises.
    """
    hyperparams, folder = run.hyperparams, run_dir / TOKENS_FOLDER
    check_seq_len(base.config, hyperparams.seq_len)
    pool = run.pool_files or _sample(run_dir, run, base, accelerator, reporter)
    fault: tuple[Any, ...] | None = None
    if accelerator.is_local_main_process:
        try:
            _write_rows(folder, run, base, pool)
        except RejectedError as error:
            fault = (error.code, error.message, error.errors)
    raise_on_every_rank(fault, accelerator)
    train, heldout, sampled, unseen = (PackedRows(folder, name, hyperparams.seq_len) for name in _NAMES)
    if not run.train_shards:
        return _text(TrainingRows(sampled, None, 0.0, hyperparams.seed), sampled, unseen)
    if train.tokens <= hyperparams.seq_len or not len(train) or not len(heldout):
        raise RejectedError(
            "dataset_too_short",
            f"the dataset has {train.tokens} tokens to heal on and {heldout.tokens} held out; one sequence"
            f" takes {hyperparams.seq_len + 1} and the held-out part 2. Add text, lower seq_len, or leave it out: the"
            " model then heals on text that the source writes.",
        )
    return _text(TrainingRows(train, None, SAMPLED_SHARE, hyperparams.seed, sampled), train, heldout, unseen)


_NAMES = ("train", "heldout", "sampled", "sampled-heldout")


def _write_rows(folder: Path, run: ContractRun, base: BaseFolder, pool: tuple[str, ...]) -> None:
    folder.mkdir(exist_ok=True)
    for name, documents in _sources(run, base, pool).items():
        pack(documents, folder, name, run.hyperparams.seq_len, join=keeps_documents_apart(base.config))


def _sources(run: ContractRun, base: BaseFolder, pool: tuple[str, ...]) -> dict[str, Iterable[Document]]:
    """The pool's last rows are held out: at most 64, and at most a quarter of a pool that came with the job.

    Raises ValueError for a pool of fewer than two rows.
    """
    rows = row_tokenizer(base)
    sampled = list(rows.documents(pool))
    if len(sampled) < 2:
        raise ValueError(f"the pool {', '.join(pool)} has {len(sampled)} rows; at least 2 are needed")
    cut = len(sampled) - min(SAMPLED_HELDOUT_ROWS, max(1, len(sampled) // 4))
    documents = rows.documents(run.train_shards), rows.documents(run.heldout_shards), sampled[:cut], sampled[cut:]
    return dict(zip(_NAMES, documents, strict=True))


def _text(
    training: TrainingRows, scored: PackedRows, heldout: PackedRows, retention: PackedRows | None = None
) -> HealingText:
    return HealingText(
        training=training,
        calibration=scored.spread(CALIBRATION_TOKENS),
        damage=scored.spread(DAMAGE_TOKENS),
        heldout=heldout.spread(HELDOUT_TOKENS_LIMIT),
        retention=retention.spread(HELDOUT_TOKENS_LIMIT) if retention is not None else None,
    )


def _sample(
    run_dir: Path, run: ContractRun, base: BaseFolder, accelerator: Accelerator, reporter: Reporter
) -> tuple[str, ...]:
    """Not more rows than healing will read, but enough for calibration."""
    hyperparams, folder = run.hyperparams, run_dir / POOL_FOLDER
    wanted = max(hyperparams.train_steps * hyperparams.batch_size, CALIBRATION_TOKENS // hyperparams.seq_len)
    rows = min(wanted, SAMPLED_ROWS) + SAMPLED_HELDOUT_ROWS
    write_pool(folder, base, rows, hyperparams.seq_len, hyperparams.seed, accelerator, reporter)
    return (str(folder / POOL_FILE),)
