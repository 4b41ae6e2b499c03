"""Strict JSON with a place for every fault: the standard library's parser, and what it lets pass."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from fusion_data.faults import pointer
from fusion_data.limits import Limits

# A text without an escaped NUL or half a surrogate pair: plain characters, other escapes and whole pairs. Possessive,
# so that it takes one pass.
_CLEAN = re.compile(
    r"(?:[^\\]++|\\[^u]|\\u(?!0000|[dD][89a-fA-F])[0-9a-fA-F]{4}"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+",
    re.DOTALL,
)
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2})")


class JsonTextError(Exception):
    """Not strict JSON. `position` counts characters from 0 where it is known; `path` is a JSON pointer where it is."""

    def __init__(self, rule: str, detail: str, *, position: int | None = None, path: str | None = None) -> None:
        super().__init__(detail)
        self.rule = rule
        self.detail = detail
        self.position = position
        self.path = path


class _Repeated(dict[str, Any]):
    """An object in which `key` stands twice."""

    key = ""


class _Constant(str):
    """NaN, Infinity or -Infinity, which are no JSON."""


class _Decoder:
    """Marks what the standard parser accepts and JSON does not; `marked` says whether there was any."""

    def __init__(self) -> None:
        self.marked = False
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str) -> Any:
        return self._decoder.decode(text)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read = dict(pairs)
        if len(read) == len(pairs):
            return read
        self.marked = True
        repeated = _Repeated(read)
        repeated.key = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return repeated

    def _constant(self, name: str) -> _Constant:
        self.marked = True
        return _Constant(name)


def parse_json(text: str, limits: Limits) -> Any:
    """The value of a JSON text. Raises JsonTextError with the first fault."""
    if _SUSPECT.search(text):
        _check_escapes(text)
    decoder = _Decoder()
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise JsonTextError("invalid_json", _words(error), position=error.pos) from None
    except RecursionError:
        raise JsonTextError("too_deep", f"nested deeper than {limits.nesting} levels") from None
    except ValueError as error:  # an integer of thousands of digits
        raise JsonTextError("invalid_json", f"not JSON that can be read: {error}") from None
    if decoder.marked or text.count("{") + text.count("[") > limits.nesting:
        _walk(value, limits.nesting)
    return value


def _words(error: json.JSONDecodeError) -> str:
    """What the parser says, without the capital letter it starts with."""
    return f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}"


def _check_escapes(text: str) -> None:
    clean = _CLEAN.match(text)
    position = clean.end() if clean else 0
    escape = text[position : position + 6]
    if not _SUSPECT.match(escape):
        return  # clean to the end, or an escape so malformed that the parser names it
    if escape == "\\u0000":
        raise JsonTextError("nul_character", "the escape \\u0000 is NUL", position=position)
    raise JsonTextError("lone_surrogate", f"the escape {escape} is half of a surrogate pair", position=position)


def _walk(value: Any, depth: int) -> None:
    """Raises JsonTextError at the first mark, or at what is nested too deeply. Holds one iterator a level."""
    path: list[str | int] = []
    levels: list[Iterator[tuple[str | int, Any]]] = [iter([("", value)])]  # the row itself, under a name not shown
    while levels:
        step = next(levels[-1], None)
        if step is None:
            levels.pop()
            del path[-1:]
            continue
        name, one = step
        path.append(name)
        if isinstance(one, dict | list):
            _check(one, path[1:], depth)
            levels.append(iter(one.items()) if isinstance(one, dict) else enumerate(one))
            continue
        if isinstance(one, _Constant):
            raise JsonTextError("invalid_json", f"not JSON: {one} is no JSON value", path=pointer(path[1:]))
        path.pop()


def _check(one: dict[str, Any] | list[Any], path: Sequence[str | int], depth: int) -> None:
    if len(path) >= depth:
        raise JsonTextError("too_deep", f"nested deeper than {depth} levels", path=pointer(path))
    if isinstance(one, _Repeated):
        raise JsonTextError("duplicate_key", f"the key {one.key[:40]!r} stands twice", path=pointer((*path, one.key)))
