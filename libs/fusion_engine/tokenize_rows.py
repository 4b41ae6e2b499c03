"""From rows of JSONL shards to documents of ids, each id marked as trained or only read.

    {"text"}                  everything is trained
    {"prompt", "completion"}  the completion and the EOS after it are trained
    {"messages", "tools"?}    the assistant's turns are trained, as the model's own chat template writes them
    {"ids"}                   sampled from the base (a line of a pool file): everything is trained

Text begins as the model's tokenizer begins it (with BOS where it has one) and ends with EOS; a conversation begins and
ends as its template says. The first id of a document is never trained: nothing comes before it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fusion_engine.chat import ChatError, ChatTemplate, encode_spans
from fusion_engine.outcomes import RejectedError

_ROWS_PER_BATCH, _CHARACTERS_PER_BATCH = 256, 2**20
_FAULTS_LIMIT = 20


_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _Row(msgspec.Struct):
    """A line of a shard: the fields of one of the four kinds."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    ids: list[_Id] | None = None

    @property
    def kind(self) -> str:
        if self.text is not None:
            return "text"
        if self.prompt is not None and self.completion is not None:
            return "completion"
        if self.messages is not None:
            return "messages"
        return "ids" if self.ids is not None else "unknown"


_decode_row = msgspec.json.Decoder(_Row).decode


@dataclass(frozen=True)
class Document:
    """`ids`, shape (n,), and `trained`, shape (n,): whether the prediction of an id counts.

    `whole` documents are answers that mean nothing without their prompt: packing splits them only if they must be.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    whole: bool


@dataclass(frozen=True)
class _Place:
    shard: str
    line: int


class RowTokenizer:
    """Reads shards and encodes their rows.

    `vocabulary` is the number of rows of the model's embedding. Faults are collected, so that a customer sees the first
    twenty at once; then RejectedError names them with shard and line.
    """

    def __init__(self, tokenizer: Any, eos_id: int, vocabulary: int) -> None:
        self._tokenizer, self._eos_id, self._vocabulary = tokenizer, eos_id, vocabulary
        self._chat = ChatTemplate(tokenizer)
        self._faults: list[tuple[str, _Place, str]] = []

    def documents(self, shards: Iterable[str]) -> Iterator[Document]:
        """The rows of shards, in order.

        Raises RejectedError: invalid_row, invalid_encoding, empty_completion, chat_without_assistant, no_chat_template,
        chat_not_supported or tokenizer_mismatch.
        """
        for batch in _batches(self._rows(shards)):
            for kind, group in groupby(batch, key=lambda row: row[1].kind):
                yield from self._checked(self._encode(kind, list(group)))
        self._reject_faults()

    def _rows(self, shards: Iterable[str]) -> Iterator[tuple[_Place, _Row]]:
        for place, line in _lines(shards):
            try:
                row = _decode_row(line)
            except UnicodeDecodeError as error:
                self._fault("invalid_encoding", place, str(error))
                continue
            except msgspec.DecodeError as error:
                self._fault("invalid_row", place, str(error))
                continue
            if row.kind == "unknown":
                needed = '{"text"}, {"prompt", "completion"} or {"messages"}'
                self._fault("invalid_row", place, f"nothing to train on here; a row is {needed}")
            elif row.completion is not None and not row.completion.strip() and row.kind == "completion":
                self._fault("empty_completion", place, "'completion' is empty; remove the row or write an answer")
            else:
                yield place, row

    def _encode(self, kind: str, rows: list[tuple[_Place, _Row]]) -> Iterator[tuple[_Place, Document]]:
        if kind == "text":
            encoded = self._tokenizer([row.text for _, row in rows], verbose=False)["input_ids"]
            for (place, _), ids in zip(rows, encoded, strict=True):
                yield place, self._ended(np.asarray(ids, np.int32), np.ones(len(ids), np.bool_), whole=False)
        elif kind == "completion":
            for place, row in rows:
                prompt, completion = row.prompt or "", row.completion or ""
                span = (len(prompt), len(prompt) + len(completion))
                ids, trained = encode_spans(self._tokenizer, prompt + completion, [span], add_special_tokens=True)
                yield place, self._ended(ids, trained, whole=True)
        elif kind == "messages":
            for place, row in rows:
                document = self._encode_chat(place, row)
                if document is not None:
                    yield place, document
        else:
            for place, row in rows:
                ids = np.asarray(row.ids, np.int32)
                yield place, Document(ids, np.ones(len(ids), np.bool_), whole=True)

    def _encode_chat(self, place: _Place, row: _Row) -> Document | None:
        try:
            ids, trained = self._chat.encode(row.messages or [], row.tools)
        except ChatError as error:
            self._fault(error.code, place, str(error))
            return None
        return Document(ids, trained, whole=True)

    def _ended(self, ids: NDArray[np.int32], trained: NDArray[np.bool_], *, whole: bool) -> Document:
        """The document with one EOS at its end, trained, whether or not the tokenizer writes it itself."""
        if len(ids) == 0 or ids[-1] != self._eos_id:
            ids, trained = np.append(ids, np.int32(self._eos_id)), np.append(trained, np.True_)
        trained[-1] = True
        return Document(ids, trained, whole)

    def _checked(self, documents: Iterable[tuple[_Place, Document]]) -> Iterator[Document]:
        for place, document in documents:
            if len(document.ids) and not 0 <= document.ids.min() <= document.ids.max() < self._vocabulary:
                wrong = next(int(one) for one in document.ids if not 0 <= one < self._vocabulary)
                detail = f"id {wrong} is outside the model's embedding of {self._vocabulary} rows"
                self._fault("tokenizer_mismatch", place, detail)
            elif len(document.ids):
                document.trained[0] = False
                yield document

    def _fault(self, code: str, place: _Place, detail: str) -> None:
        self._faults.append((code, place, detail))
        if len(self._faults) == _FAULTS_LIMIT or code == "no_chat_template":
            self._reject_faults()

    def _reject_faults(self) -> None:
        if not self._faults:
            return
        code, place, detail = self._faults[0]
        more = f" (and {len(self._faults) - 1} more faults)" if len(self._faults) > 1 else ""
        errors: list[dict[str, object]] = [
            {"code": code, "shard": place.shard, "line": place.line, "detail": detail}
            for code, place, detail in self._faults
        ]
        raise RejectedError(code, f"{place.shard}, line {place.line}: {detail}{more}", tuple(errors))


def _lines(paths: Iterable[str]) -> Iterator[tuple[_Place, bytes]]:
    for path in paths:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield _Place(Path(path).name, number), line


def _batches(rows: Iterable[tuple[_Place, _Row]]) -> Iterator[list[tuple[_Place, _Row]]]:
    """Rows in lists short enough for memory and long enough for the tokenizer's threads."""
    batch: list[tuple[_Place, _Row]] = []
    characters = 0
    for place, row in rows:
        batch.append((place, row))
        characters += len(row.text or "")
        if len(batch) == _ROWS_PER_BATCH or characters >= _CHARACTERS_PER_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
