"""Rows of shards become ids of which the right ones are trained, and packed rows hold them as they should."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fusion_engine.batch import collate
from fusion_engine.outcomes import RejectedError
from fusion_engine.packing import PackedRows, pack
from fusion_engine.tokenize_rows import Document, RowTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

EOS = "<eos>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
# As Qwen3: the last turn opens with a thought that earlier turns do not have.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}" + CHATML
COUNTING = "{{ messages | length }}" + CHATML  # rewrites its beginning with every message

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what grows?"},
    {"role": "assistant", "content": "new layers"},
    {"role": "user", "content": "and then?"},
    {"role": "assistant", "content": "they learn"},
]


@pytest.fixture(scope="session")
def tokenizer_maker() -> Callable[..., Any]:
    """tokenizer_maker(chat_template, bos) -> a byte-level tokenizer that writes anything."""

    def make(chat_template: str | None = None, *, bos: bool = False) -> Any:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        special = [EOS, "<bos>", "<|im_start|>", "<|im_end|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(["the new layers learn what grows and then they learn"], trainer)
        if bos:
            inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, bos_token="<bos>")
        fast.chat_template = chat_template
        return fast

    return make


def shard(folder: Path, *rows: object) -> list[str]:
    path = folder / "train-00000.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return [str(path)]


def read(tokenizer: Any, folder: Path, *rows: object) -> list[Document]:
    return list(RowTokenizer(tokenizer, tokenizer.eos_token_id, len(tokenizer)).documents(shard(folder, *rows)))


def trained_text(tokenizer: Any, document: Document) -> str:
    return str(tokenizer.decode(document.ids[document.trained]))


def fault(tokenizer: Any, folder: Path, *rows: object) -> RejectedError:
    with pytest.raises(RejectedError) as caught:
        read(tokenizer, folder, *rows)
    return caught.value


def test_text_is_trained_whole_and_ends_once(tokenizer_maker: Callable[..., Any], tmp_path: Path) -> None:
    for bos in (False, True):
        tokenizer = tokenizer_maker(bos=bos)
        plain, ended, empty = read(tokenizer, tmp_path, {"text": "new layers"}, {"text": f"grows{EOS}"}, {"text": ""})
        begin = "<bos>" if bos else ""
        assert tokenizer.decode(plain.ids) == f"{begin}new layers{EOS}"
        assert tokenizer.decode(ended.ids) == f"{begin}grows{EOS}"
        assert plain.trained.tolist() == [False] + [True] * (len(plain.ids) - 1)
        assert len(empty.ids) == 1 + bos
        assert not plain.whole


def test_a_prompt_is_read_and_a_completion_learned(tokenizer_maker: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = tokenizer_maker(bos=True)
    row, empty_prompt = read(
        tokenizer,
        tmp_path,
        {"prompt": "what grows? é", "completion": " new layers ü"},
        {"prompt": "", "completion": "they learn"},
    )
    assert tokenizer.decode(row.ids) == f"<bos>what grows? é new layers ü{EOS}"
    assert trained_text(tokenizer, row) == f" new layers ü{EOS}"
    assert trained_text(tokenizer, empty_prompt) == f"they learn{EOS}"
    assert row.whole


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (CHATML, "new layers<|im_end|>\nthey learn<|im_end|>\n"),
        (MARKED, "new layers<|im_end|>they learn<|im_end|>"),
        (THINKING, "new layers<|im_end|>\n<think>\n\n</think>\n\nthey learn<|im_end|>\n"),
    ],
    ids=["difference of prefixes", "generation markers", "thoughts only in the last turn"],
)
def test_the_assistants_turns_alone_are_learned(
    template: str, wanted: str, tokenizer_maker: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = tokenizer_maker(template)
    (document,) = read(tokenizer, tmp_path, {"messages": TURNS})
    assert tokenizer.decode(document.ids) == tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert trained_text(tokenizer, document) == wanted


def test_a_template_that_writes_the_date_writes_the_same_one_for_ever(
    tokenizer_maker: Callable[..., Any], tmp_path: Path
) -> None:
    """Llama 3, SmolLM3 and Mistral Small do; a job that is resumed on another day must train the same rows."""
    tokenizer = tokenizer_maker("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    (document,) = read(tokenizer, tmp_path, {"messages": TURNS})
    assert tokenizer.decode(document.ids).startswith("26 Jul 2024\n<|im_start|>system")
    assert trained_text(tokenizer, document) == "new layers<|im_end|>\nthey learn<|im_end|>\n"


def test_tools_reach_the_template(tokenizer_maker: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = tokenizer_maker("{% for t in tools %}[{{ t.function.name }}]{% endfor %}" + CHATML)
    tools = [{"type": "function", "function": {"name": "grow", "parameters": {}}}]
    (document,) = read(tokenizer, tmp_path, {"messages": TURNS, "tools": tools})
    assert tokenizer.decode(document.ids).startswith("[grow]<|im_start|>system")
    assert trained_text(tokenizer, document) == "new layers<|im_end|>\nthey learn<|im_end|>\n"


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"prompt": "what?", "completion": " \n"}, "empty_completion", "'completion' is empty"),
        ({"messages": TURNS[:2]}, "chat_without_assistant", "no turn of the assistant"),
        ({"messages": []}, "chat_without_assistant", "no turn of the assistant"),
        ({"messages": TURNS}, "chat_not_supported", "a user begins"),
        ({"prompt": "what?"}, "invalid_row", "nothing to train on"),
        ({"text": 5}, "invalid_row", "Expected `str | null`"),
        ({"ids": [3, -1]}, "invalid_row", "Expected `int` >= 0"),
        ({"ids": [3, 2**64]}, "invalid_row", "$.ids[1]"),
        (b"{", "invalid_row", "truncated"),
        (b'{"text": "\xff"}', "invalid_encoding", "utf-8"),
    ],
)
def test_a_bad_row_is_named(
    row: object, code: str, words: str, tokenizer_maker: Callable[..., Any], tmp_path: Path
) -> None:
    error = fault(tokenizer_maker(STRICT), tmp_path, {"text": "fine"}, row, {"text": "fine"})
    assert error.code == code
    assert "train-00000.jsonl, line 2: " in error.message
    assert words in error.message
    assert [(one["code"], one["line"]) for one in error.errors] == [(code, 2)]


def test_all_bad_rows_are_named_at_once_up_to_a_limit(tokenizer_maker: Callable[..., Any], tmp_path: Path) -> None:
    empty = {"prompt": "what?", "completion": ""}
    error = fault(tokenizer_maker(CHATML), tmp_path, empty, {"text": "x"}, {"messages": []}, empty)
    assert [(one["code"], one["line"]) for one in error.errors] == [
        ("empty_completion", 1),
        ("empty_completion", 4),
        ("chat_without_assistant", 3),
    ]
    assert "(and 2 more faults)" in error.message
    assert len(fault(tokenizer_maker(CHATML), tmp_path, *[empty] * 50).errors) == 20


def test_a_model_without_a_chat_template(tokenizer_maker: Callable[..., Any], tmp_path: Path) -> None:
    error = fault(tokenizer_maker(None), tmp_path, {"messages": TURNS}, {"messages": TURNS})
    assert (error.code, len(error.errors)) == ("no_chat_template", 1)


def test_a_template_whose_turns_cannot_be_told(tokenizer_maker: Callable[..., Any], tmp_path: Path) -> None:
    error = fault(tokenizer_maker(COUNTING), tmp_path, {"messages": TURNS})
    assert error.code == "chat_not_supported"
    assert "rewrites earlier messages" in error.message


def test_ids_beyond_the_embedding(tokenizer_maker: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = tokenizer_maker()
    rows = RowTokenizer(tokenizer, tokenizer.eos_token_id, vocabulary=100)
    with pytest.raises(RejectedError, match=r"line 1: id \d+ is outside the model's embedding of 100 rows") as caught:
        list(rows.documents(shard(tmp_path, {"text": "the new layers"})))
    assert caught.value.code == "tokenizer_mismatch"
    pool = RowTokenizer(tokenizer, tokenizer.eos_token_id, vocabulary=100)
    with pytest.raises(RejectedError, match="line 2: id 100 is outside"):
        list(pool.documents(shard(tmp_path, {"ids": [1, 99]}, {"ids": [5, 100]})))


def test_pool_lines_come_as_they_were_sampled(tokenizer_maker: Callable[..., Any], tmp_path: Path) -> None:
    rows = RowTokenizer(tokenizer_maker(), 0, vocabulary=100)
    (document,) = rows.documents(shard(tmp_path, {"ids": [7, 8, 9]}))
    assert document.ids.tolist() == [7, 8, 9]
    assert document.trained.tolist() == [False, True, True]


def document(length: int, first: int, *, whole: bool = False, trained: range | None = None) -> Document:
    """Ids that count up from `first`."""
    marks = np.arange(length) > 0 if trained is None else np.isin(np.arange(length), trained)
    return Document(np.arange(first, first + length, dtype=np.int32), marks, whole)


def ids_of(rows: PackedRows) -> list[list[int]]:
    return [rows.row(number).ids.tolist() for number in range(len(rows))]


def test_text_fills_rows_and_no_document_predicts_the_next(tmp_path: Path) -> None:
    rows = pack([document(3, 10), document(6, 20)], tmp_path, "rows", 4, join=True)
    assert ids_of(rows) == [[10, 11, 12, 20, 21], [21, 22, 23, 24, 25]]
    batch = collate([rows.row(0), rows.row(1)], 4)
    assert batch.input_ids.tolist() == [[10, 11, 12, 20], [21, 22, 23, 24]]
    assert batch.labels.tolist() == [[11, 12, -100, 21], [22, 23, 24, 25]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]


def test_every_label_is_trained_exactly_once(tmp_path: Path) -> None:
    lengths = [1, 2, 5, 9, 4, 13, 1, 1, 3]
    documents = [document(length, 100 * number) for number, length in enumerate(lengths)]
    for join in (True, False):
        rows = pack(documents, tmp_path, "rows", 4, join=join)
        batch = collate([rows.row(number) for number in range(len(rows))], 4)
        labels = sorted(batch.labels[batch.labels != -100].tolist())
        assert labels == [int(one) for document in documents for one in document.ids[1:]]
        assert join or all(not rows.row(number).starts[1:].any() for number in range(len(rows)))


def test_answers_are_kept_with_their_prompts(tmp_path: Path) -> None:
    documents = [document(3, 10, whole=True), document(4, 20, whole=True), document(7, 30, whole=True)]
    rows = pack(documents, tmp_path, "rows", 4, join=True)
    assert ids_of(rows) == [[10, 11, 12], [20, 21, 22, 23], [30, 31, 32, 33, 34], [34, 35, 36]]
    padded = collate([rows.row(0)], 4)
    assert padded.input_ids.tolist() == [[10, 11, 0, 0]]
    assert padded.labels.tolist() == [[11, 12, -100, -100]]


def test_rows_that_would_train_nothing_are_left_out(tmp_path: Path) -> None:
    long_prompt = document(11, 10, whole=True, trained=range(9, 11))
    unseen = document(5, 40, whole=True, trained=range(0))
    rows = pack([long_prompt, unseen, document(2, 50, whole=True)], tmp_path, "rows", 4, join=True)
    assert ids_of(rows) == [[18, 19, 20], [50, 51]]
    assert collate([rows.row(0)], 4).labels.tolist() == [[19, 20, -100, -100]]
    assert rows.tokens == 18
