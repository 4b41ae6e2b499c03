"""The priorities of jobs: three words for customers, numbers in the rows, so that an operator can go between them."""

from typing import Literal

Priority = Literal["high", "normal", "low"]

NUMBERS: dict[Priority, int] = {"high": 10, "normal": 0, "low": -10}


def priority_word(number: int) -> Priority:
    """The word for a row's number, also for one that an operator chose."""
    if number == 0:
        return "normal"
    return "high" if number > 0 else "low"
