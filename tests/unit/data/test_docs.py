"""docs/datasets.md says what the code does: every rule, every ending, the limits; and its examples run."""

import os
import re
import subprocess
import sys
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
    assert figures[1:12] == [
        f"{LIMITS.line_bytes // MIB} MiB",
        f"{LIMITS.file_bytes // GIB} GiB",
        f"{LIMITS.expansion} times its own size",
        f"{LIMITS.zstd_window_bytes // MIB} MiB",
        f"{LIMITS.row_group_bytes // GIB} GiB",
        f"{LIMITS.rows:,}",
        f"{LIMITS.nesting}",
        f"{LIMITS.messages:,}",
        f"{LIMITS.columns:,}",
        f"{LIMITS.seconds // 3600:.0f} hours",
        f"{LIMITS.memory_bytes // GIB} GiB; usual files take a tenth",
    ]
    assert f"beyond its first {LIMITS.expansion_from_bytes // MIB} MiB" in PAGE


def _blocks() -> list[tuple[str, str]]:
    """The examples in the order of the page: (language, content)."""
    return re.findall(r"^```(console|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def _run(argv: list[str], folder: Path) -> str:
    own = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        argv, cwd=folder, env=os.environ | {"PATH": own}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout


def test_the_examples_do_what_the_page_says(tmp_path):
    assert len(_blocks()) == 3
    for language, content in _blocks():
        if language == "python":
            assert _run([sys.executable, "-c", content], tmp_path) == ""
            continue
        for step in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
            command, _, expected = step.partition("\n")
            assert _run(["bash", "-c", command], tmp_path) == expected, command
