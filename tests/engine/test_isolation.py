"""A packed row gives each of its documents the logits that the document would have alone, in every family."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_engine.attention_mask import keeps_documents_apart
from fusion_engine.batch import collate
from fusion_engine.packing import pack
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
