"""Compares an answer with the example that the product's manual shows."""

import re
from collections.abc import Iterable
from typing import Any

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def differences(shown: Any, answered: Any, *, more: bool = True, at: str = "") -> list[str]:
    """Where an answer is not as shown: a member is missing, or of another kind.

    "<id>", "<time>", "<url>" and "<any>" stand for any such value; other strings are literal. Without `more` an answer
    has no other members.
    """
    if isinstance(shown, dict):
        if not isinstance(answered, dict):
            return [f"{at} is {answered!r}, not an object"]
        missing = [f"{at}/{name} is missing" for name in shown.keys() - answered.keys()]
        extra = [] if more else [f"{at}/{name} is not shown" for name in answered.keys() - shown.keys()]
        pairs: Iterable[tuple[Any, Any, Any]] = (
            (name, shown[name], answered[name]) for name in shown.keys() & answered.keys()
        )
        return missing + extra + _inside(pairs, at)
    if isinstance(shown, list):
        if not isinstance(answered, list) or len(answered) != len(shown):
            return [f"{at} is {answered!r}, not {len(shown)} items"]
        return _inside(zip(range(len(shown)), shown, answered, strict=True), at)
    return [] if _matches(shown, answered) else [f"{at} is {answered!r}, shown as {shown!r}"]


def _inside(members: Iterable[tuple[Any, Any, Any]], at: str) -> list[str]:
    return [fault for name, one, other in members for fault in differences(one, other, at=f"{at}/{name}")]


def _matches(shown: Any, answered: Any) -> bool:
    match shown:
        case "<id>":
            return isinstance(answered, str) and UUID.fullmatch(answered) is not None
        case "<time>":
            return isinstance(answered, str) and TIME.fullmatch(answered) is not None
        case "<url>":
            return isinstance(answered, str) and answered.startswith("http")
        case "<any>":
            return True
        case bool() | str() | None:
            return bool(answered == shown)
        case _:
            return isinstance(answered, int | float) and not isinstance(answered, bool) and answered == shown
