"""`fusion-engine evaluate`: figures equal to those of a job, formats of data, and what it refuses."""

import json
from pathlib import Path

import pytest
from conftest import rows, write_rows
from engine_runs import MakeRun, of_type
from fusion_engine.cli import main
from fusion_engine.run import execute


def evaluated(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, float]:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)
    return found


def test_the_figures_are_those_of_a_job(make_run: MakeRun, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run("run")
    execute(run_dir)
    measured = of_type(run_dir, "Evaluation")
    for model, event in ((tiny_base, measured[0]), (run_dir / "export", measured[-1])):
        found = evaluated(capsys, model, run_dir / "heldout.jsonl", "--seq-len", "16")
        assert found["perplexity"] == pytest.approx(event.perplexity, rel=1e-6)
        assert (found["tokens"], found["seq_len"], found["precision"]) == (event.tokens, 16, "float32")


def test_text_files_folders_and_pools(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = rows(6)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n" + "\n\n\n".join(texts[:3]) + "\n")
    write_rows(folder / "b.jsonl", texts[3:])
    (folder / "notes.md").write_text("not data")
    whole = evaluated(capsys, tiny_base, write_rows(tmp_path / "all.jsonl", texts))
    assert evaluated(capsys, tiny_base, folder) == whole
    assert evaluated(capsys, tiny_base, folder / "a.txt", folder / "b.jsonl") == whole
    assert whole["seq_len"] == 128, "the model's positions"
    (tmp_path / "pool.jsonl").write_text('{"ids": [1, 5, 9, 4]}\n{"ids": [1, 7, 7]}\n')
    assert evaluated(capsys, tiny_base, tmp_path / "pool.jsonl")["tokens"] == 5


def test_much_data_is_sampled_evenly_and_said(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "all.jsonl", rows(60))
    assert main(["evaluate", str(tiny_base), data, "--seq-len", "16", "--max-tokens", "160"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("perplexity  ")
    assert "tokens      156 in 10 of 94 rows of up to 16\n" in printed.out
    assert printed.err == "", "no bar where nobody looks"


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("none.jsonl", None, [], "there is no such file [inputs_unavailable]"),
        ("data.csv", b"text\na\n", [], "give .jsonl or .txt [unsupported_format]"),
        ("data.txt", b"\xff\xfe", [], "not UTF-8"),
        ("data.txt", b"\n\n", [], "none that is predicted [dataset_too_short]"),
        ("data.jsonl", b'{"text": "x"}\n{"prompt": "x", "completion": ""}\n', [], "line 2: 'completion' is empty"),
        ("data.jsonl", b'{"text": "the model"}\n', ["--seq-len", "129"], "use 128 [validation_failed]"),
    ],
)
def test_what_cannot_be_measured(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    words: list[str],
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["evaluate", str(tiny_base), str(tmp_path / name), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_all_bad_rows_are_printed(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": 1}\n{"text": "x"}\n{"prompt": "x", "completion": ""}\n')
    assert main(["evaluate", str(tiny_base), str(tmp_path / "data.jsonl")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [": " + line.split(": ", 2)[1] for line in lines] == [": data.jsonl, line 1", ":   data.jsonl, line 3"]


def test_an_empty_folder(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tiny_base), str(tmp_path)]) == 2
    assert "no .jsonl or .txt file is in this folder [dataset_empty]" in capsys.readouterr().err


def test_help_says_what_data_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert '{"prompt": ..., "completion": ...}' in text
    assert "examples:" in text
