"""Documents packed into rows of at most seq_len + 1 ids, on disk; no document is seen from another.

    <name>.ids     all ids in a row, little-endian int32
    <name>.flags   a byte an id: TRAINED, if predicting it counts, and STARTS, if a document begins with it
    <name>.rows    (first id, end) of every row, little-endian int64 pairs

A row predicts each of its ids but the first. Plain text fills rows to the brim; a row that ends inside a document
shares its last id with the next, so that every id but a document's first is predicted exactly once. Documents that are
`whole` begin a new row where the rest of this one is too short for them. Rows that would train nothing are left out.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusion_engine.tokenize_rows import Document

TRAINED, STARTS = 1, 2
_ROW_BYTES = 16


@dataclass(frozen=True)
class Row:
    """`ids`, shape (n,) with 2 <= n <= seq_len + 1, and for each whether predicting it counts and a document begins."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    starts: NDArray[np.bool_]


@dataclass(frozen=True)
class PackedRows:
    """Rows on disk, read one at a time: memory does not grow with the dataset."""

    folder: Path
    name: str
    seq_len: int

    @cached_property
    def tokens(self) -> int:
        return self._path("ids").stat().st_size // 4

    @cached_property
    def _length(self) -> int:
        return self._path("rows").stat().st_size // _ROW_BYTES

    def __len__(self) -> int:
        return self._length

    def row(self, index: int) -> Row:
        first, end = np.fromfile(self._path("rows"), dtype="<i8", count=2, offset=index * _ROW_BYTES).tolist()
        ids = np.fromfile(self._path("ids"), dtype="<i4", count=end - first, offset=first * 4)
        flags = np.fromfile(self._path("flags"), dtype=np.uint8, count=end - first, offset=first)
        return Row(ids, (flags & TRAINED) > 0, (flags & STARTS) > 0)

    def lengths(self) -> NDArray[np.int64]:
        """The positions that each row fills, of `seq_len`; shape (rows,)."""
        places = np.fromfile(self._path("rows"), dtype="<i8").reshape(-1, 2)
        lengths: NDArray[np.int64] = places[:, 1] - places[:, 0] - 1
        return lengths

    def spread(self, limit: int) -> list[Row]:
        """Rows that together have at most about `limit` positions: all of them, or an even choice."""
        chosen = min(len(self), max(1, limit // self.seq_len))
        return [self.row(number * len(self) // chosen) for number in range(chosen)]

    def _path(self, part: str) -> Path:
        return self.folder / f"{self.name}.{part}"


def pack(documents: Iterable[Document], folder: Path, name: str, seq_len: int, *, join: bool) -> PackedRows:
    """Write the documents' rows. Unless `join`, every document begins a new row (see attention_mask)."""
    planner = _RowPlanner(seq_len, join)
    with ExitStack() as stack:
        ids, flags, rows = (
            stack.enter_context((folder / f"{name}.{part}").open("wb")) for part in ("ids", "flags", "rows")
        )
        for document in documents:
            marks = document.trained.astype(np.uint8) * TRAINED
            marks[0] |= STARTS
            ids.write(document.ids.astype("<i4").tobytes())
            flags.write(marks.tobytes())
            rows.write(np.asarray(list(planner.add(document)), "<i8").tobytes())
        rows.write(np.asarray(list(planner.finish()), "<i8").tobytes())
    return PackedRows(folder, name, seq_len)


class _RowPlanner:
    """Decides where rows begin and end in the stream of ids, looking at one document at a time."""

    def __init__(self, seq_len: int, join: bool) -> None:
        self._longest, self._join = seq_len + 1, join
        self._first = self._end = 0  # the open row
        self._trains = False  # whether an id before the current document counts in the open row

    def add(self, document: Document) -> Iterator[tuple[int, int]]:
        """The rows that this document completes."""
        length, begin = len(document.ids), self._end
        too_long = begin - self._first + length > self._longest
        if begin > self._first and (not self._join or (document.whole and too_long)):
            yield from self.finish()
        counts = np.concatenate([[0], np.cumsum(document.trained)])  # counts[i]: trained ids among the first i

        def trains(first: int, end: int) -> bool:
            return bool(counts[end - begin] > counts[max(first + 1 - begin, 0)])

        self._end = begin + length
        while self._end - self._first >= self._longest:
            row = (self._first, self._first + self._longest)
            if self._trains or trains(*row):
                yield row
            self._first, self._trains = row[1] - 1, False
        if self._end - self._first == 1:  # the document's last id, predicted already
            self._first = self._end
        else:
            self._trains = self._trains or trains(self._first, self._end)

    def finish(self) -> Iterator[tuple[int, int]]:
        """The open row, which is then closed."""
        if self._trains:
            yield self._first, self._end
        self._first, self._trains = self._end, False
