"""Data that no retry can mend ends a job with one code, the places of all faults, and what to do about them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_ranks import Ranks
from engine_runs import HYPERPARAMS, MakeRun, events, outcome
from fusion_core.problems import PROBLEMS
from fusion_core.trainer_protocol import Notice, Rejected
from fusion_engine import training_data
from fusion_engine.run import execute
from msgspec.structs import replace
from transformers import LlamaModel

CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}"
QUESTION, ANSWER = {"role": "user", "content": "what grows"}, {"role": "assistant", "content": "new layers"}
GOOD = {"text": "the model grows new layers and learns from every row"}


def rejected(run_dir: Path) -> Rejected:
    execute(run_dir)
    found = outcome(run_dir)
    assert isinstance(found, Rejected)
    assert found.code in PROBLEMS
    assert not (run_dir / "export").exists()
    return found


def write_shard(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("shard", ["train.jsonl", "heldout.jsonl", "rehearsal.jsonl"])
@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"prompt": "what grows", "completion": ""}, "empty_completion"),
        ({"messages": [QUESTION]}, "chat_without_assistant"),
        ({"messages": [QUESTION, ANSWER]}, "no_chat_template"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "invalid_row"),
    ],
)
def test_a_bad_row_in_any_shard(make_run: MakeRun, shard: str, row: dict[str, Any], code: str) -> None:
    run_dir = make_run("run")
    write_shard(run_dir / shard, *[GOOD] * 40, row)
    found = rejected(run_dir)
    assert found.code == code
    assert found.message.startswith(f"{shard}, line 41: ")
    assert found.errors[0]["line"] == 41


def test_conversations_train_where_the_base_has_a_template(make_run: MakeRun, copy_base: Path) -> None:
    (copy_base / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    run_dir = make_run("run", base=copy_base, hyperparams=replace(HYPERPARAMS, turns=1, seq_len=64))
    for shard in ("train.jsonl", "heldout.jsonl"):
        write_shard(run_dir / shard, *[{"messages": [QUESTION, ANSWER, QUESTION, ANSWER]}] * 20)
    execute(run_dir)
    result = outcome(run_dir).result
    assert result["perplexity_after"] < result["perplexity_before"]


def test_a_dataset_shorter_than_a_sequence(make_run: MakeRun) -> None:
    run_dir = make_run("run")
    write_shard(run_dir / "train.jsonl", {"text": "the model grows"})
    found = rejected(run_dir)
    assert found.code == "dataset_too_short"
    assert "4 tokens to train on" in found.message
    assert "one sequence takes 17" in found.message


def test_rows_that_are_mostly_padding_are_told(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"prompt": "the model grows", "completion": "new layers"}] * 20
    for name, apart, told in (("joined", True, 0), ("alone", False, 1)):
        monkeypatch.setattr(training_data, "keeps_documents_apart", lambda _, apart=apart: apart)
        run_dir = make_run(name, hyperparams=replace(HYPERPARAMS, turns=1))
        write_shard(run_dir / "train.jsonl", *answers)
        execute(run_dir)
        notices = [event for event in events(run_dir) if isinstance(event, Notice)]
        assert len(notices) == told
    assert notices[0].code == "padding"
    assert notices[0].message == "69% of the training positions are padding; with seq_len 8 95 % of the rows stay whole"


def test_padding_at_the_end_of_rows_is_not_computed(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one document each, all shorter than 64 positions, in a job whose seq_len is 128."""
    monkeypatch.setattr(training_data, "keeps_documents_apart", lambda _: False)
    seen: set[int] = set()
    forward = LlamaModel.forward

    def watch(self: LlamaModel, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            seen.add(kwargs["input_ids"].shape[1])
        return forward(self, *args, **kwargs)

    run_dir = make_run("run", hyperparams=replace(HYPERPARAMS, turns=1, seq_len=128, growth_placement="even"))
    write_shard(run_dir / "train.jsonl", *[{"prompt": "the model grows", "completion": "new layers"}] * 40)
    monkeypatch.setattr(LlamaModel, "forward", watch)
    execute(run_dir)
    assert outcome(run_dir).result["perplexity_after"] < outcome(run_dir).result["perplexity_before"]
    assert seen == {64, 128}, "128 where memory for the longest row is measured, before the first step"


def test_a_dataset_of_empty_answers(make_run: MakeRun, copy_base: Path) -> None:
    (copy_base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    run_dir = make_run("run", base=copy_base)
    silent = {"messages": [QUESTION | {"content": "the model grows " * 40}, ANSWER | {"content": ""}]}
    for shard in ("train.jsonl", "heldout.jsonl"):
        write_shard(run_dir / shard, *[silent] * 5)
    found = rejected(run_dir)
    assert found.code == "dataset_too_short"
    assert "none of one part is an answer" in found.message


def test_a_sequence_longer_than_the_models_positions(make_run: MakeRun) -> None:
    found = rejected(make_run("run", hyperparams=replace(HYPERPARAMS, seq_len=129)))
    assert (found.code, found.errors[0]["pointer"]) == ("validation_failed", "/hyperparams/seq_len")
    assert "use 128" in found.message


def test_a_tokenizer_that_cannot_tell_answers_from_prompts(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "load_tokenizer", lambda _: SimpleNamespace(is_fast=False))
    found = rejected(make_run("run"))
    assert found.code == "base_model_incomplete"
    assert "tokenizer.json is missing" in found.message


def test_every_process_hears_of_bad_data(make_run: MakeRun, ranks: Ranks) -> None:
    run_dir = make_run("two", num_processes=2)
    write_shard(run_dir / "train.jsonl", {"prompt": "what grows", "completion": " "})
    ended = ranks.attempt(run_dir)
    assert ended.returncode == 0, ended.stderr
    assert outcome(run_dir).code == "empty_completion"
