"""The registry of codes is closed: everything that can go wrong has one, and each says what to do."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fusion_core import problems
from fusion_core.problems import PROBLEMS

ROOT = Path(__file__).parents[3]
LIBRARIES = [ROOT / "libs" / name for name in ("fusion_core", "fusion_data", "fusion_engine", "fusion_http")]
SOURCES = [path for folder in (*LIBRARIES, ROOT / "services") for path in sorted(folder.rglob("*.py"))]


def codes_in(tree: ast.AST) -> Iterator[str]:
    """Literal codes: the first argument of a rejection, `code=`, and the member `code` of a dictionary."""
    for node in ast.walk(tree):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            found += node.args[:1] if name.endswith(("RejectedError", "ProblemError")) else []
            if name != "Notice":  # its codes are a set of their own, which mypy holds closed
                found += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found += [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "code"]
        yield from (one.value for one in found if isinstance(one, ast.Constant) and isinstance(one.value, str))


def test_every_code_in_the_sources_is_registered() -> None:
    used = {code: path.name for path in SOURCES for code in codes_in(ast.parse(path.read_text()))}
    assert len(used) > 10, "the search found next to nothing"
    assert {code: name for code, name in used.items() if code not in PROBLEMS} == {}


def test_no_code_is_registered_twice() -> None:
    codes = Counter(problem.code for problem in problems._ALL)
    assert [code for code, count in codes.items() if count > 1] == []


def test_every_problem_has_a_title_and_says_what_to_do() -> None:
    assert [one.code for one in PROBLEMS.values() if not one.title or not one.advice.endswith(".")] == []
    statuses = {one.status for one in PROBLEMS.values()}
    assert statuses == {400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 422, 429, 431, 500, 503, None}
