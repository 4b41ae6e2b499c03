"""docs/datasets.md says what the code does: every rule, every ending, the limits."""

import re
from pathlib import Path

import pytest
from fusion_data import FORMATS, LIMITS, RULES

PAGE = (Path(__file__).parents[3] / "docs/datasets.md").read_text()
GIB, MIB = 2**30, 2**20


def test_the_table_of_rules_is_that_of_the_code():
    shown = re.findall(r"^\| `(\w+)` \| (\w+) \| `(\w+)` \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert shown == [(rule.name, rule.scope, rule.code, rule.meaning, rule.fix) for rule in RULES.values()]


@pytest.mark.parametrize("ending", FORMATS)
def test_every_ending_is_named(ending):
    assert f"`{ending}`" in PAGE


def test_the_limits_are_those_of_the_code():
    rows = dict(re.findall(r"^\| ([^|`]+) \| ([^|]+) \| [^|]+ \|$", PAGE, re.MULTILINE))
    figures = [value.split(" (")[0] for value in rows.values()]
    assert figures[1:10] == [
        f"{LIMITS.line_bytes // MIB} MiB",
        f"{LIMITS.file_bytes // GIB} GiB",
        f"{LIMITS.expansion} times its own size",
        f"{LIMITS.zstd_window_bytes // MIB} MiB",
        f"{LIMITS.row_group_bytes // GIB} GiB",
        f"{LIMITS.rows:,}",
        f"{LIMITS.nesting}",
        f"{LIMITS.messages:,}",
        f"{LIMITS.columns:,}",
    ]
    assert f"beyond its first {LIMITS.expansion_from_bytes // MIB} MiB" in PAGE
