"""Every rule of the closed list can be broken, by the example here, and is broken alone."""

import gzip
import json
from collections.abc import Callable

import pytest
from fusion_core.problems import PROBLEMS
from fusion_data import RULES, Fault, Limits

SMALL = Limits(
    line_bytes=200, expansion=2, expansion_from_bytes=1000, nesting=8, messages=2, columns=3, row_group_bytes=1000
)
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"id": "c", "function": {"name": "f", "arguments": "{}"}}


def row(*messages: object, **fields: object) -> bytes:
    return json.dumps(fields or {"messages": messages}).encode() + b"\n"


# A case is a file's name and its content, or the columns of a Parquet file.
CASES: dict[str, tuple[str, bytes | dict[str, list[object]]]] = {
    "unknown_format": ("a.json", b"{}"),
    "format_mismatch": ("a.jsonl.gz", b"{}"),
    "wrong_encoding": ("a.jsonl", "{}".encode("utf-16")),
    "damaged_file": ("a.jsonl.gz", gzip.compress(b"{}")[:10] + b"\xff" * 20),
    "cut_off_file": ("a.jsonl", b'{"text": "a'),
    "expands_too_far": ("a.txt.gz", gzip.compress(b"x\n\n" * 5000)),
    "too_many_columns": ("a.csv", b"text,a,b,c\n"),
    "row_group_too_large": ("a.parquet", {"text": [f"{n:0100}" for n in range(100)]}),
    "missing_columns": ("a.csv", b"a,b\n"),
    "bad_header": ("a.csv", b"text,text\n"),
    "column_type": ("a.parquet", {"text": [1]}),
    "open_quote": ("a.csv", b'text\n"a' + b"\n" * 300),
    "invalid_utf8": ("a.txt", b"\xff"),
    "nul_character": ("a.txt", b"\0"),
    "lone_surrogate": ("a.jsonl", b'{"text": "\\udfff"}\n'),
    "line_too_long": ("a.txt", b"x" * 201),
    "invalid_json": ("a.jsonl", b"{]\n"),
    "duplicate_key": ("a.jsonl", b'{"text": "a", "text": "b"}\n'),
    "too_deep": ("a.jsonl", b'{"text": "a", "x": [[[[[[[[[]]]]]]]]]}\n'),
    "csv_syntax": ("a.csv", b'text\n"a"b\n'),
    "csv_columns": ("a.csv", b"text\na,b\n"),
    "not_an_object": ("a.jsonl", b"[]\n"),
    "unknown_row_type": ("a.jsonl", b"{}\n"),
    "ambiguous_row": ("a.jsonl", row(text="a", messages=[])),
    "missing_field": ("a.jsonl", row(prompt="a")),
    "wrong_type": ("a.jsonl", row(text=1)),
    "empty_value": ("a.jsonl", row(text=" ")),
    "number_range": ("a.jsonl", row(messages=[USER, ANSWER], tools=[{"name": "f", "x": 2**64}])),
    "unknown_role": ("a.jsonl", row({"role": "human", "content": "a"}, ANSWER)),
    "message_order": ("a.jsonl", row(ANSWER, {"role": "system", "content": "a"})),
    "no_assistant_turn": ("a.jsonl", row(USER)),
    "misplaced_field": ("a.jsonl", row(USER | {"tool_call_id": "a"}, ANSWER)),
    "unsupported_content": ("a.jsonl", row({"role": "user", "content": [{"type": "image"}]}, ANSWER)),
    "invalid_tool_call": ("a.jsonl", row(ANSWER | {"tool_calls": [{"type": "code"}]})),
    "unknown_tool_call_id": ("a.jsonl", row(ANSWER | {"tool_calls": [CALL]}, {"role": "tool", "content": ""})),
    "equal_pair": ("a.jsonl", row(prompt="a", chosen="b", rejected="b")),
    "too_many_messages": ("a.jsonl", row(USER, ANSWER, USER)),
}
# These are broken by a dataset or its reader's machine and not by a row; test_report.py and test_poison.py break them.
OF_THE_DATASET = {"too_many_rows", "empty_file", "too_slow", "too_much_memory"}


def test_every_rule_has_an_example() -> None:
    assert CASES.keys() | OF_THE_DATASET == RULES.keys()


@pytest.mark.parametrize("rule", CASES)
def test_the_example_breaks_its_rule_and_no_other(
    fault: Callable[..., Fault], parquet: Callable[..., bytes], rule: str
) -> None:
    filename, content = CASES[rule]
    found = fault(content if isinstance(content, bytes) else parquet(content), filename, SMALL)
    assert (found.rule, found.line >= 1) == (rule, True)
    assert found.detail


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_are_written_for_people(rule) -> None:
    assert rule.code in PROBLEMS
    assert rule.meaning.endswith(".")
    assert rule.fix.endswith(".")
