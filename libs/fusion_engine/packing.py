"""From JSONL shards to rows of token ids: documents are joined by EOS and cut into windows that waste nothing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_DOCUMENTS_PER_BATCH = 256


class _Document(msgspec.Struct):
    text: str


_decode = msgspec.json.Decoder(_Document).decode


@dataclass(frozen=True)
class PackedRows:
    """Token ids on disk, read as rows of seq_len + 1 ids; row i starts at id i * seq_len.

    Neighbouring rows share one id, so that every id but the first is predicted exactly once.
    """

    path: Path
    seq_len: int

    @cached_property
    def tokens(self) -> int:
        return self.path.stat().st_size // 4

    def __len__(self) -> int:
        return max(0, (self.tokens - 1) // self.seq_len)

    def row(self, index: int) -> NDArray[np.int32]:
        """Row `index`, shape (seq_len + 1,)."""
        return self._ids(index * self.seq_len, self.seq_len + 1)

    def spread(self, limit: int) -> list[NDArray[np.int32]]:
        """Rows that together predict at most about `limit` ids: all, the short last one too, or an even choice."""
        if self.tokens - 1 <= limit:
            starts = range(0, self.tokens - 1, self.seq_len)
            return [self._ids(start, self.seq_len + 1) for start in starts]
        chosen = max(1, limit // self.seq_len)
        return [self.row(number * len(self) // chosen) for number in range(chosen)]

    def _ids(self, start: int, count: int) -> NDArray[np.int32]:
        return np.fromfile(self.path, dtype="<i4", count=count, offset=start * 4)


def documents(shards: Iterable[str]) -> Iterator[str]:
    """The texts of JSONL shards, in order."""
    for shard in shards:
        with Path(shard).open("rb") as file:
            for line in file:
                yield _decode(line).text


def pack(shards: Sequence[str], tokenizer: Any, eos_id: int, path: Path) -> None:
    """Tokenize the shards into `path` as little-endian int32 ids, an EOS after every document."""
    texts = documents(shards)
    with path.open("wb") as file:
        while batch := list(islice(texts, _DOCUMENTS_PER_BATCH)):
            encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
            ids = chain.from_iterable([*document, eos_id] for document in encoded)
            file.write(np.fromiter(ids, dtype="<i4").tobytes())
