"""Conversations: checks messages, tool calls and tools, and brings their spellings down to one."""

from collections.abc import Sequence
from typing import Any

from fusion_data.findings import Findings, Path
from fusion_data.json_text import JsonTextError, parse_json
from fusion_data.rows import ROLES, FunctionCall, Message, Role, ToolCall

_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})


def read_messages(value: object, path: Path, findings: Findings, *, is_answer: bool) -> list[Message] | None:
    """The messages of a conversation, or None with faults. `is_answer`: one must be a turn of the assistant."""
    if not isinstance(value, list):
        findings.wrong_type(value, path, "an array of messages")
        return None
    if not value:
        findings.add("empty_value", path, "there are no messages")
        return None
    if len(value) > findings.limits.messages:
        findings.add("too_many_messages", path, f"{len(value)} messages; the limit is {findings.limits.messages}")
        return None
    faults = len(findings.faults)
    read = [_read_message(one, (*path, number), findings) for number, one in enumerate(value)]
    messages = [message for message in read if message is not None]
    if len(findings.faults) > faults:
        return None
    _check_order(messages, path, findings)
    if is_answer and not any(message.role == "assistant" for message in messages):
        findings.add("no_assistant_turn", path, "no message is the assistant's")
    return messages


def _read_message(value: object, path: Path, findings: Findings) -> Message | None:
    if not isinstance(value, dict):
        findings.wrong_type(value, path, "a message, an object with role and content")
        return None
    findings.unused.update(f"messages/*/{name}" for name in value.keys() - _MESSAGE_FIELDS)
    role = _read_role(value.get("role"), path, findings)
    calls = value.get("tool_calls") or None  # null and [] are what some writers put where there are none
    call_id = value.get("tool_call_id")
    if role is None:
        return None
    if calls is not None and role != "assistant":
        findings.add("misplaced_field", (*path, "tool_calls"), f"a {role} message cannot call tools")
    if call_id is not None and role != "tool":
        findings.add("misplaced_field", (*path, "tool_call_id"), f"a {role} message answers no tool call")
    content = _read_content(value.get("content"), (*path, "content"), findings)
    if content is not None and calls is None and role != "tool" and (not content or content.isspace()):
        rule, detail = (
            ("no_assistant_turn", "neither content nor tool calls")
            if role == "assistant"
            else (
                "empty_value",
                "the content is empty or missing",
            )
        )
        findings.add(rule, (*path, "content"), detail)
    return Message(
        role=role,
        content=content or "",
        name=_read_name(value.get("name"), (*path, "name"), findings),
        tool_calls=None if calls is None else _read_calls(calls, (*path, "tool_calls"), findings),
        tool_call_id=_read_name(call_id, (*path, "tool_call_id"), findings),
    )


def _read_role(value: object, path: Path, findings: Findings) -> Role | None:
    if value is None:
        findings.add("missing_field", (*path, "role"), "the message has no role")
        return None
    for role in ROLES:
        if value == role:
            return role
    shown = repr(value)[:40]
    findings.add("unknown_role", (*path, "role"), f"{shown} is none of {', '.join(ROLES)}")
    return None


def _read_content(value: object, path: Path, findings: Findings) -> str | None:
    """A string; the texts of a list of parts, joined; empty where there is none. None, with a fault, otherwise."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return findings.text(value, path)
    texts: list[str | None] = []
    for number, part in enumerate(value):
        where = (*path, number)
        if isinstance(part, dict) and part.get("type") == "text":
            texts.append(findings.text(part.get("text"), (*where, "text")))
        else:
            found = repr(part.get("type"))[:40] if isinstance(part, dict) else "no object"
            findings.add("unsupported_content", where, f"the part is {found}, not text")
            texts.append(None)
    return None if None in texts else "".join(text for text in texts if text is not None)


def _read_name(value: object, path: Path, findings: Findings) -> str | None:
    return None if value is None else findings.full_text(value, path)


def _read_calls(value: object, path: Path, findings: Findings) -> list[ToolCall] | None:
    if not isinstance(value, list):
        findings.wrong_type(value, path, "an array of tool calls")
        return None
    calls = [_read_call(one, (*path, number), findings) for number, one in enumerate(value)]
    return [call for call in calls if call is not None]


def _read_call(value: object, path: Path, findings: Findings) -> ToolCall | None:
    """{"type": "function", "function": {"name", "arguments"}}, or name and arguments without the wrapping."""
    if not isinstance(value, dict):
        findings.wrong_type(value, path, "a tool call, an object")
        return None
    if value.get("type") not in (None, "function"):
        findings.add("invalid_tool_call", (*path, "type"), "the type of a tool call is 'function'")
        return None
    wrapped = value.get("function")
    function, where = (value, path) if wrapped is None else (wrapped, (*path, "function"))
    if not isinstance(function, dict):
        findings.wrong_type(function, where, "an object with name and arguments")
        return None
    call_id = _read_name(value.get("id"), (*path, "id"), findings)
    name = function.get("name")
    if name is None:
        findings.add("missing_field", (*where, "name"), "the tool call has no name")
        return None
    text = findings.full_text(name, (*where, "name"))
    arguments = _read_arguments(function.get("arguments"), (*where, "arguments"), findings)
    if text is None or arguments is None:
        return None
    return ToolCall(type="function", function=FunctionCall(text, arguments), id=call_id)


def _read_arguments(value: object, path: Path, findings: Findings) -> dict[str, Any] | None:
    if value is None:
        findings.add("missing_field", path, "the tool call has no arguments; write {} where there are none")
        return None
    if isinstance(value, str):
        try:
            value = parse_json(value, findings.limits) if value.strip() else {}
        except JsonTextError as error:
            findings.add("invalid_tool_call", path, f"the arguments are not JSON: {error.detail}")
            return None
    if not isinstance(value, dict):
        findings.add("invalid_tool_call", path, "the arguments are no JSON object")
        return None
    findings.plain_json(value, path)
    return value


def read_tools(value: object, path: Path, findings: Findings) -> list[dict[str, Any]] | None:
    """The functions offered to the assistant: an array of objects with a name, or a string of JSON that holds it."""
    if isinstance(value, str):
        try:
            value = parse_json(value, findings.limits)
        except JsonTextError as error:
            findings.add("invalid_json", path, f"the tools are not JSON: {error.detail}")
            return None
    if not isinstance(value, list):
        findings.wrong_type(value, path, "an array of tools")
        return None
    for number, tool in enumerate(value):
        where = (*path, number)
        if not isinstance(tool, dict):
            findings.wrong_type(tool, where, "a tool, an object")
            continue
        inner = tool.get("function", tool)
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
            findings.add("missing_field", (*where, "function", "name"), "the tool has no name")
        findings.plain_json(tool, where)
    return value or None


def _check_order(messages: Sequence[Message], path: Path, findings: Findings) -> None:
    """A system message only first; tool messages only after the turn that called, each for one of its calls."""
    calls: list[ToolCall] | None = None  # of the assistant's turn that tool messages may follow now
    for number, message in enumerate(messages):
        where = (*path, number)
        if message.role == "system" and number > 0:
            findings.add("message_order", where, "a system message after the first message")
        if message.role != "tool":
            calls = message.tool_calls
        elif calls is None:
            findings.add("message_order", where, "a tool message without a tool call before it")
        else:
            _check_answers(message, calls, where, findings)


def _check_answers(message: Message, calls: Sequence[ToolCall], path: Path, findings: Findings) -> None:
    known = {call.id for call in calls if call.id is not None}
    if message.tool_call_id is None and known:
        findings.add("unknown_tool_call_id", path, "the calls before have ids and this message names none of them")
    elif message.tool_call_id is not None and message.tool_call_id not in known:
        shown = message.tool_call_id[:40]
        findings.add("unknown_tool_call_id", (*path, "tool_call_id"), f"no call before has the id {shown!r}")
