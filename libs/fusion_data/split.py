"""The two sides of a dataset, neither of which is ever empty."""

from fusion_core.heldout import is_held_out, row_hash


class Split:
    """Holds out rows by their hash; but the lowest hash of the dataset is held out and the highest is trained on,
    whatever `percent` says; where all rows are alike, the first is held out. Repeated rows stay on one side.
    """

    def __init__(self, percent: int, smallest_hash: int, largest_hash: int) -> None:
        if not 0 <= percent <= 100:
            raise ValueError(f"heldout_percent is {percent}, not between 0 and 100")
        self._percent = percent
        self._smallest = smallest_hash
        self._largest = largest_hash
        self._all_alike = smallest_hash == largest_hash
        self._seen = 0

    def holds_out(self, content: bytes) -> bool:
        """Whether this row is held out; call once a row, in order."""
        self._seen += 1
        if self._all_alike:
            return self._seen == 1
        digest = row_hash(content)
        if digest in (self._smallest, self._largest):
            return digest == self._smallest
        return is_held_out(digest, self._percent)
