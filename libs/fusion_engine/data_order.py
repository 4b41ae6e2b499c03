"""Which row is trained on when: a pure function of (seed, row number), so that the data cursor is the step."""

import numpy as np
from numpy.typing import NDArray

from fusion_engine.packing import PackedRows

_MILLION = 1_000_000
_DATASET, _REHEARSAL = 0, 1


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


class TrainingRows:
    """The endless sequence of training rows: the dataset's, with a fixed share of rehearsal rows among them."""

    def __init__(self, dataset: PackedRows, rehearsal: PackedRows | None, replay_fraction: float, seed: int) -> None:
        self._dataset, self._dataset_order = dataset, RowOrder(len(dataset), seed, _DATASET)
        rehearses = rehearsal is not None and len(rehearsal) > 0
        self._replay_millionths = round(replay_fraction * _MILLION) if rehearses else 0
        self._rehearsal = rehearsal if rehearsal is not None else dataset
        self._rehearsal_order = RowOrder(len(self._rehearsal), seed, _REHEARSAL)

    def row(self, number: int) -> NDArray[np.int32]:
        """Row `number` (from 0, counted through the whole job), shape (seq_len + 1,)."""
        rehearsed = number * self._replay_millionths // _MILLION
        if (number + 1) * self._replay_millionths // _MILLION > rehearsed:
            return self._rehearsal.row(self._rehearsal_order.index(rehearsed))
        return self._dataset.row(self._dataset_order.index(number - rehearsed))

    def batch(self, first: int, count: int, rank: int, ranks: int) -> NDArray[np.int64]:
        """This rank's share of rows `first` to `first + count`, shape (count / ranks, seq_len + 1)."""
        return np.stack([self.row(first + place) for place in range(rank, count, ranks)]).astype(np.int64)
