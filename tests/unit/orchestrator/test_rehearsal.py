"""A rehearsal set is JSON lines with text; each bad line is named."""

from pathlib import Path

import pytest
from fusion_orchestrator import rehearsal
from fusion_orchestrator.rehearsal import RehearsalError, check_rehearsal


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "rehearsal.jsonl"
    path.write_bytes(content)
    return path


def test_rows_are_counted(tmp_path: Path) -> None:
    assert check_rehearsal(write(tmp_path, b'{"text": "a", "source": "x"}\n{"text": "b"}')) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b'{"text": "a"}\n{"text": 3}\n', "line 2: Expected `str`"),
        (b'{"text": "a"}\n\n', "line 2"),
        (b'{"text": "  "}\n', "line 1: has an empty text"),
        (b'{"content": "a"}\n', "missing required field `text`"),
        (b'["a"]\n', "line 1: Expected `object`"),
        (b'{"text": "\xff"}\n', "line 1"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(RehearsalError, match=reason):
        check_rehearsal(write(tmp_path, content))


def test_a_line_too_long_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MAX_LINE_BYTES", 16)
    with pytest.raises(RehearsalError) as caught:
        check_rehearsal(write(tmp_path, b'{"text": "' + b"x" * 100 + b'"}\n'))
    assert str(caught.value).count("line ") == 1


def test_only_the_first_bad_lines_are_listed(tmp_path: Path) -> None:
    with pytest.raises(RehearsalError) as caught:
        check_rehearsal(write(tmp_path, b"{}\n" * 1000))
    assert str(caught.value).count("line ") == 20
