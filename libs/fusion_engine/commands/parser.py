"""An argument parser that answers an unknown option with the nearest known one, and the types of its arguments."""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """Its subcommands, which argparse makes of the same class, complain with their own usage."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Nothing unknown is let through. Raises SystemExit for what cannot be parsed."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            nearest = difflib.get_close_matches(word, self._option_string_actions, n=1)
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}" + "".join(f"; nearest: {near}" for near in nearest)
            )
        return parsed, unknown


def positive(word: str) -> int:
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def not_negative(word: str) -> int:
    value = int(word)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def seconds(word: str) -> float:
    value = float(word)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word} is not a length of time")
    return value
