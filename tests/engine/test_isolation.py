"""A packed row gives each of its documents the logits that the document would have alone, in every family."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_engine.attention_mask import keeps_documents_apart
from fusion_engine.batch import Batch, collate
from fusion_engine.chunked_loss import chunked_cross_entropy, head_of, last_hidden
from fusion_engine.packing import Row, pack
from fusion_engine.tokenize_rows import Document
from torch import Tensor

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "falcon_h1")
LENGTHS = (9, 14, 3, 21)  # with a window of 5, most of them longer than it
SEQ_LEN = 24
# fp32, logits of size 1: the same sums in another order. A document that saw its neighbour differs by 0.1 and more.
TOLERANCE = 2e-5


def documents() -> list[Document]:
    ids = [np.arange(length, dtype=np.int32) * 7 % 59 + 1 + number for number, length in enumerate(LENGTHS)]
    return [Document(one, np.arange(len(one)) > 0, whole=False) for one in ids]


def alone(model: Any, ids: np.ndarray[Any, Any]) -> Tensor:
    return model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0]  # type: ignore[no-any-return]


PAIRS = [
    (family, attention)
    for family in FAMILIES
    for attention in ("eager", "sdpa")
    if (family, attention) != ("gemma2", "sdpa")  # its attention has a softcap, for which sdpa has no place
]


@torch.no_grad()
@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_documents_do_not_see_each_other(
    family: str, attention: str, family_maker: Callable[..., Any], tmp_path: Path
) -> None:
    model = family_maker(family, _attn_implementation=attention)
    join = keeps_documents_apart(model.config.to_dict())
    rows = pack(documents(), tmp_path, "rows", SEQ_LEN, join=join)
    assert join is (family != "falcon_h1")
    compared = 0
    for number in range(len(rows)):
        row = rows.row(number)
        batch = collate([row], SEQ_LEN)
        found = model(**batch.inputs, use_cache=False).logits[0]
        begins = [0, *(np.flatnonzero(row.starts[1:-1]) + 1).tolist(), len(row.ids) - 1]
        assert join or len(begins) == 2
        for begin, end in pairwise(begins):
            wanted = alone(model, row.ids[begin:end])
            assert float((found[begin:end] - wanted).abs().max()) < TOLERANCE
            compared += 1
    assert compared >= len(LENGTHS)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_comparison_would_notice(family: str, family_maker: Callable[..., Any]) -> None:
    model = family_maker(family)
    first, second = documents()[0].ids, documents()[1].ids
    joined = alone(model, np.concatenate([first, second]))[len(first) :]
    assert float((joined - alone(model, second)).abs().max()) > 1000 * TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str, family_maker: Callable[..., Any], tmp_path: Path) -> None:
    model = family_maker(family)
    row = pack(documents()[:1], tmp_path, "rows", SEQ_LEN, join=True).row(0)
    padded, exact = collate([row], SEQ_LEN), collate([row], len(row.ids) - 1)
    found = model(**padded.inputs, use_cache=False).logits[:, : len(row.ids) - 1]
    assert float((found - model(**exact.inputs, use_cache=False).logits).abs().max()) < TOLERANCE
    assert not (padded.labels[0, len(row.ids) - 1 :] != -100).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_learn_as_their_documents_would_alone(
    family: str, family_maker: Callable[..., Any], tmp_path: Path
) -> None:
    """A batch of all rows, padded and packed as a job's: the sum of losses and every gradient are the documents'.

    The bound is 1e-5 of each tensor's largest gradient, in fp32. Rows of Falcon-H1 are one document each, here of four
    lengths: no state of its SSM or convolution reaches another document, and padding has no say.
    """
    model = family_maker(family).train()
    whole = [replace(document, whole=True) for document in documents()]
    rows = pack(whole, tmp_path, "rows", SEQ_LEN, join=keeps_documents_apart(model.config.to_dict()))
    assert len(rows) == (len(LENGTHS) if family == "falcon_h1" else 2)
    together = loss_and_gradients(model, rows.spread(1000), SEQ_LEN)
    alone = [pack([one], tmp_path, f"row-{number}", SEQ_LEN, join=False).row(0) for number, one in enumerate(whole)]
    apart = [loss_and_gradients(model, [row], len(row.ids) - 1) for row in alone]
    assert together[0] == pytest.approx(sum(loss for loss, _ in apart), rel=1e-5)
    for name, gradient in together[1].items():
        wanted = sum(gradients[name] for _, gradients in apart)
        assert float((gradient - wanted).abs().max()) <= 1e-5 * float(gradient.abs().max()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_padding_that_is_cut_off_has_no_say(family: str, family_maker: Callable[..., Any], tmp_path: Path) -> None:
    model = family_maker(family).train()
    rows = pack(documents(), tmp_path, "rows", 100, join=False).spread(1000)
    whole = collate(rows, 100)
    assert whole.trimmed().input_ids.shape == (len(LENGTHS), 64)
    assert collate(rows, 64).trimmed().input_ids.shape == (len(LENGTHS), 64)
    (loss, gradients), (kept_loss, kept) = (of_batch(model, batch) for batch in (whole, whole.trimmed()))
    assert kept_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert float((kept[name] - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max()), name


def loss_and_gradients(model: Any, rows: list[Row], length: int) -> tuple[float, dict[str, Tensor]]:
    return of_batch(model, collate(rows, length))


def of_batch(model: Any, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The sum of the rows' losses as training computes it, and its gradient by each parameter."""
    model.zero_grad()
    loss, _ = chunked_cross_entropy(last_hidden(model, **batch.inputs), head_of(model), batch.labels)
    loss.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return float(loss.detach()), gradients
