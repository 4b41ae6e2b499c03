"""The threat model names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_named_test_exists() -> None:
    page = (ROOT / "docs/threat-model.md").read_text()
    paths = set(re.findall(r"`((?:unit|safety|integration|contract|engine|e2e|architecture)/[\w/.]+)`", page))
    assert len(paths) > 15
    assert [path for path in sorted(paths) if not (ROOT / "tests" / path).exists()] == []
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(?:\.\.\.|test)(_\w+)`", page)
    assert [name for name in names if f"{name}(" not in sources] == []
