"""Which row is trained on when: a pure function of (seed, row number), so that the data cursor is the step."""

import numpy as np
from numpy.typing import NDArray

from fusion_engine.batch import Batch, collate
from fusion_engine.packing import PackedRows, Row

_MILLION = 1_000_000
_DATASET, _REHEARSAL, _POOL = 0, 1, 2


class RowOrder:
    """Passes over `rows` rows without end, each pass in its own permutation drawn from (seed, stream, pass)."""

    def __init__(self, rows: int, seed: int, stream: int) -> None:
        self._rows, self._seed, self._stream = rows, seed, stream
        self._pass_number = -1
        self._permutation: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def index(self, number: int) -> int:
        """The row that comes `number`-th (from 0)."""
        pass_number, place = divmod(number, self._rows)
        if pass_number != self._pass_number:
            generator = np.random.Generator(np.random.PCG64([self._seed, self._stream, pass_number]))
            self._permutation, self._pass_number = generator.permutation(self._rows), pass_number
        return int(self._permutation[place])


class _Stream:
    """The rows of one source in their order."""

    def __init__(self, rows: PackedRows, seed: int, stream: int, *, pool: bool = False) -> None:
        self._rows, self._order, self.pool = rows, RowOrder(len(rows), seed, stream), pool

    def row(self, number: int) -> Row:
        return self._rows.row(self._order.index(number))


class TrainingRows:
    """The endless sequence of training rows: the dataset's, with a fixed share of rehearsal rows among them.

    Rehearsal rows come from the catalog's rehearsal text, from the pool sampled from the base, or from both in turn.
    """

    def __init__(
        self,
        dataset: PackedRows,
        rehearsal: PackedRows | None,
        replay_fraction: float,
        seed: int,
        pool: PackedRows | None = None,
    ) -> None:
        self.seq_len = dataset.seq_len
        self._dataset = _Stream(dataset, seed, _DATASET)
        self._rehearsal = [
            _Stream(rows, seed, stream, pool=stream == _POOL)
            for rows, stream in ((rehearsal, _REHEARSAL), (pool, _POOL))
            if rows is not None and len(rows) > 0
        ]
        self._replay_millionths = round(replay_fraction * _MILLION) if self._rehearsal else 0

    def row(self, number: int) -> tuple[Row, bool]:
        """Row `number` (from 0, counted through the whole job), and whether it was sampled from the base."""
        rehearsed = number * self._replay_millionths // _MILLION
        if (number + 1) * self._replay_millionths // _MILLION > rehearsed:
            turn, source = divmod(rehearsed, len(self._rehearsal))
            stream = self._rehearsal[source]
            return stream.row(turn), stream.pool
        return self._dataset.row(number - rehearsed), False

    def batch(self, first: int, count: int, rank: int, ranks: int) -> Batch:
        """This rank's share of rows `first` to `first + count`: count / ranks rows of seq_len positions."""
        rows, flags = zip(*(self.row(first + place) for place in range(rank, count, ranks)), strict=True)
        return collate(rows, self.seq_len, flags)
