"""The four types of rows: what each becomes in a shard, and what is wrong with those that become none."""

import json

import pytest
from fusion_data import BadRow, Limits, Row

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}, "id": "c1"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "c1"}


@pytest.fixture
def one(read):
    def one(record) -> Row | BadRow:
        (row,) = read(json.dumps(record).encode() + b"\n")
        return row

    return one


def conversation(*messages, **fields):
    return {"messages": list(messages)} | fields


@pytest.mark.parametrize(
    ("record", "kind", "expected"),
    [
        ({"text": "x", "id": 1}, "text", {"text": "x"}),
        ({"prompt": "p", "completion": " c"}, "completion", {"prompt": "p", "completion": " c"}),
        ({"messages": [USER, ANSWER], "prompt": "p"}, "messages", {"messages": [USER, ANSWER]}),
        ({"text": "x", "messages": None}, "text", {"text": "x"}),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "r"},
        ),
        (
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "no"}]},
            "preference",
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "no"}]},
        ),
        (conversation(USER, CALLING, RESULT, ANSWER), "messages", conversation(USER, CALLED, RESULT, ANSWER)),
        (
            conversation(USER, ANSWER, tools=[{"type": "function", "function": {"name": "add", "parameters": {}}}]),
            "messages",
            conversation(USER, ANSWER, tools=[{"type": "function", "function": {"name": "add", "parameters": {}}}]),
        ),
        (
            conversation(USER, ANSWER, tools='[{"name": "add"}]'),
            "messages",
            conversation(USER, ANSWER, tools=[{"name": "add"}]),
        ),
        (conversation(USER, ANSWER, tools=[]), "messages", conversation(USER, ANSWER)),
    ],
)
def test_good_rows_and_what_becomes_of_them(one, record, kind, expected):
    row = one(record)
    assert isinstance(row, Row), row
    assert (row.type, json.loads(row.encoded)) == (kind, expected)


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c1", "function": {"name": "add", "arguments": {"a": 1}}, "index": 0},
        {"id": "c1", "name": "add", "arguments": {"a": 1}},
    ],
)
def test_every_spelling_of_a_tool_call_is_stored_alike(one, call):
    row = one(conversation(USER, CALLING | {"tool_calls": [call]}))
    assert json.loads(row.encoded)["messages"][1] == CALLED


def test_parts_of_text_are_joined_and_empty_arguments_are_an_empty_object(one):
    parts = {"role": "assistant", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}
    assert json.loads(one(conversation(USER, parts)).encoded)["messages"][1] == ANSWER
    call = {"function": {"name": "now", "arguments": ""}}
    row = one(conversation(USER, {"role": "assistant", "tool_calls": [call]}))
    assert json.loads(row.encoded)["messages"][1]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, {("unknown_row_type", "")}),
        ({"prompt": "p"}, {("missing_field", "/completion")}),
        ({"completion": "c"}, {("missing_field", "/prompt")}),
        ({"prompt": "p", "chosen": "c"}, {("missing_field", "/rejected")}),
        ({"chosen": "c", "rejected": "r"}, {("missing_field", "/prompt")}),
        ({"text": "t", "prompt": "p", "completion": "c"}, {("ambiguous_row", "")}),
        ({"prompt": "", "completion": " \n"}, {("empty_value", "/prompt"), ("empty_value", "/completion")}),
        ({"prompt": "p", "completion": ["c"]}, {("wrong_type", "/completion")}),
        ({"messages": "hi"}, {("wrong_type", "/messages")}),
        ({"messages": []}, {("empty_value", "/messages")}),
        (conversation("hi"), {("wrong_type", "/messages/0")}),
        (conversation(USER), {("no_assistant_turn", "/messages")}),
        (conversation(USER, {"role": "assistant"}), {("no_assistant_turn", "/messages/1/content")}),
        (conversation({"role": "user", "content": ""}, ANSWER), {("empty_value", "/messages/0/content")}),
        (conversation({"role": "user", "content": 1}, ANSWER), {("wrong_type", "/messages/0/content")}),
        (conversation({"role": "bot", "content": "x"}, ANSWER), {("unknown_role", "/messages/0/role")}),
        (conversation({"content": "x"}, ANSWER), {("missing_field", "/messages/0/role")}),
        (conversation(USER, {"role": "system", "content": "x"}, ANSWER), {("message_order", "/messages/1")}),
        (conversation(USER, ANSWER, RESULT), {("message_order", "/messages/2")}),
        (conversation(USER | {"tool_calls": [CALL]}, ANSWER), {("misplaced_field", "/messages/0/tool_calls")}),
        (conversation(USER | {"tool_call_id": "c1"}, ANSWER), {("misplaced_field", "/messages/0/tool_call_id")}),
        (
            conversation(USER, CALLING, RESULT | {"tool_call_id": "c2"}),
            {("unknown_tool_call_id", "/messages/2/tool_call_id")},
        ),
        (conversation(USER, CALLING, {"role": "tool", "content": "3"}), {("unknown_tool_call_id", "/messages/2")}),
        (
            conversation({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER),
            {("unsupported_content", "/messages/0/content/0")},
        ),
        (conversation(USER, CALLING | {"tool_calls": {}}), {("no_assistant_turn", "/messages/1/content")}),
        (conversation(USER, CALLING | {"tool_calls": "x"}), {("wrong_type", "/messages/1/tool_calls")}),
        (conversation(USER, CALLING | {"tool_calls": ["x"]}), {("wrong_type", "/messages/1/tool_calls/0")}),
        (conversation(USER, ANSWER, tools=["x"]), {("wrong_type", "/tools/0")}),
        (conversation(USER, ANSWER, tools=[{}]), {("missing_field", "/tools/0/function/name")}),
        (conversation(USER, ANSWER, tools="["), {("invalid_json", "/tools")}),
        ({"prompt": "p", "chosen": "c", "rejected": "c"}, {("equal_pair", "/rejected")}),
        ({"prompt": "p", "chosen": "c", "rejected": [ANSWER]}, {("wrong_type", "/rejected")}),
        ({"prompt": [USER], "chosen": [USER], "rejected": [ANSWER]}, {("no_assistant_turn", "/chosen")}),
    ],
)
def test_a_bad_row_names_every_fault_with_its_pointer(one, record, expected):
    row = one(record)
    assert isinstance(row, BadRow), row
    assert {(fault.rule, fault.pointer) for fault in row.faults} == expected


@pytest.mark.parametrize(
    ("function", "rule", "pointer"),
    [
        ({"arguments": {}}, "missing_field", "/name"),
        ({"name": " ", "arguments": {}}, "empty_value", "/name"),
        ({"name": "f"}, "missing_field", "/arguments"),
        ({"name": "f", "arguments": "{"}, "invalid_tool_call", "/arguments"),
        ({"name": "f", "arguments": "[1]"}, "invalid_tool_call", "/arguments"),
        ({"name": "f", "arguments": [1]}, "invalid_tool_call", "/arguments"),
        ({"name": "f", "arguments": {"n": [1e999]}}, "number_range", "/arguments/n/0"),
        ({"name": "f", "arguments": {"n": 2**64}}, "number_range", "/arguments/n"),
        ({"name": "f", "arguments": '{"s": "\\ud800"}'}, "invalid_tool_call", "/arguments"),
    ],
)
def test_faults_of_a_tool_call(read, function, rule, pointer):
    record = json.dumps(conversation(USER, CALLING | {"tool_calls": [{"function": function}]}))
    ((fault,),) = [row.faults for row in read(record.replace("Infinity", "1e999").encode() + b"\n")]
    assert (fault.rule, fault.pointer) == (rule, f"/messages/1/tool_calls/0/function{pointer}")


def test_a_row_of_too_many_messages(fault):
    content = json.dumps(conversation(*[USER, ANSWER] * 3)).encode() + b"\n"
    assert fault(content, "a.jsonl", Limits(messages=5)).rule == "too_many_messages"


def test_fields_that_are_not_used_are_named(one):
    assert one({"text": "x", "id": 1, "meta": {}}).unused == {"id", "meta"}
    assert one(conversation(USER | {"weight": 0}, ANSWER, source="x")).unused == {"source", "messages/*/weight"}


def test_the_size_of_a_row_is_that_of_its_texts(one):
    assert one({"text": "zwölf"}).text_bytes == 6
    assert one({"prompt": "ab", "completion": "cde"}).text_bytes == 5
    assert one(conversation(USER, ANSWER)).text_bytes == 7
