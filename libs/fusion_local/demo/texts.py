"""Texts that every Python brings along: its documentation for the base model, its source code for the customer."""

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

_STDLIB = Path(sysconfig.get_path("stdlib"))
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "ensurepip", "pydoc_data", "encodings"}
ROW_CHARACTERS = 1500
SOURCE_CHARACTERS = 2_500_000


def _modules() -> Iterator[Path]:
    for path in sorted(_STDLIB.rglob("*.py")):
        if not _SKIPPED.intersection(path.relative_to(_STDLIB).parts):
            yield path


def documentation() -> list[str]:
    """Docstrings of the standard library and the topics of `help()`, each cleaned, in a fixed order."""
    texts = [text for _, text in sorted(topics.items())]
    for path in _modules():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring is not None and len(docstring) > 80:
                    texts.append(docstring)
    return texts


def source_code() -> list[str]:
    """Source code of the standard library in pieces of whole lines."""
    pieces: list[str] = []
    total = 0
    for path in _modules():
        piece = ""
        for line in path.read_text(encoding="utf-8", errors="ignore").splitlines(keepends=True):
            piece += line
            if len(piece) >= ROW_CHARACTERS:
                pieces.append(piece)
                total += len(piece)
                piece = ""
        if total > SOURCE_CHARACTERS:
            break
    return [piece for piece in pieces if piece.strip() and "\0" not in piece]


def write_rows(path: Path, texts: list[str]) -> None:
    """JSONL with one {"text"} a line, complete or absent."""
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    temporary.replace(path)
