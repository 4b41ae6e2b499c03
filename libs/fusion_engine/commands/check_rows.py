"""Rows that a person names, read once before any long work: a fault is told at once, with its own file and line."""

from collections.abc import Iterable
from pathlib import Path

from fusion_engine.base_folder import open_base
from fusion_engine.outcomes import RejectedError
from fusion_engine.training_data import row_tokenizer


def check_rows(model: Path, data: Iterable[str], others: Iterable[Path], seq_len: int) -> None:
    """Read every row of `data`, and of the `others` that are rehearsed or measured on, as `model` reads them.

    Raises RejectedError: dataset_too_short for less than one sequence of `data`, and as `open_base` and
    `RowTokenizer.documents` do.
    """
    rows = row_tokenizer(open_base(model))
    tokens = sum(len(document.ids) for document in rows.documents(data))
    for _ in rows.documents(map(str, others)):
        pass
    if tokens <= seq_len:
        raise RejectedError(
            "dataset_too_short",
            f"DATA has {tokens} tokens; one sequence takes {seq_len + 1}. Add text, or lower seq_len.",
        )
