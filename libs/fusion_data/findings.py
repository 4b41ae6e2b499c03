"""Collects what is wrong with one row while it is read, and checks the values that are kept."""

import math
from typing import Any

from fusion_data.faults import Fault, pointer
from fusion_data.limits import Limits

Path = tuple[str | int, ...]
_JSON_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def json_name(value: object) -> str:
    """The type of a value in the words of JSON, with its article."""
    return _JSON_NAMES.get(type(value), f"a value of type {type(value).__name__}")


class Findings:
    """Every fault of a row, the fields that are not used, and the size of the texts that are."""

    def __init__(self, line: int, limits: Limits) -> None:
        self.line = line
        self.limits = limits
        self.faults: list[Fault] = []
        self.unused: set[str] = set()
        self.text_bytes = 0

    def add(self, rule: str, path: Path, detail: str) -> None:
        self.faults.append(Fault(rule=rule, line=self.line, pointer=pointer(path), detail=detail))

    def wrong_type(self, value: object, path: Path, expected: str) -> None:
        self.add("wrong_type", path, f"this is {json_name(value)}, not {expected}")

    def text(self, value: object, path: Path) -> str | None:
        """A string that may be empty; None, with a fault, where it is none or holds what no text can."""
        if not isinstance(value, str):
            self.wrong_type(value, path, "a string")
            return None
        try:
            self.text_bytes += len(value.encode())
        except UnicodeEncodeError as error:
            detail = f"the half surrogate \\u{ord(value[error.start]):04x} at character {error.start + 1} of the value"
            self.add("lone_surrogate", path, detail)
            return None
        if "\0" in value:
            self.add("nul_character", path, f"NUL at character {value.index(chr(0)) + 1} of the value")
            return None
        return value

    def full_text(self, value: object, path: Path) -> str | None:
        """A string with something in it besides white space."""
        text = self.text(value, path)
        if text is not None and (not text or text.isspace()):
            self.add("empty_value", path, "this is empty")
            return None
        return text

    def plain_json(self, value: object, path: Path) -> None:
        """Check a value that is kept as it is: strings, finite numbers of 64 bits, bounded depth."""
        waiting: list[tuple[Any, Path]] = [(value, path)]
        while waiting:
            one, where = waiting.pop()
            if len(where) > self.limits.nesting:
                self.add("too_deep", where, f"nested deeper than {self.limits.nesting} levels")
                return
            if isinstance(one, dict):
                waiting += ((child, (*where, name)) for name, child in one.items() if self._is_key(name, where))
            elif isinstance(one, list):
                waiting += ((child, (*where, number)) for number, child in enumerate(one))
            elif isinstance(one, str):
                self.text(one, where)
            elif isinstance(one, float):
                self._check_number(math.isfinite(one), where)
            elif isinstance(one, int):
                self._check_number(-(2**63) <= one < 2**64, where)
            elif one is not None:
                self.wrong_type(one, where, "a value of JSON")

    def _is_key(self, name: object, path: Path) -> bool:
        """Whether a key can be kept; it is checked like every other text."""
        return self.text(name, (*path, "(key)")) is not None

    def _check_number(self, is_kept: bool, path: Path) -> None:
        if not is_kept:
            self.add("number_range", path, "the number does not fit into 64 bits")
