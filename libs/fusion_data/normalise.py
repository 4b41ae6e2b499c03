"""From a record of any format, an object by its field names, to a row or to everything that is wrong with it."""

from collections.abc import Collection, Mapping
from typing import Any

from fusion_data.faults import BadRow, FileError
from fusion_data.findings import Findings, Path, json_name
from fusion_data.limits import Limits
from fusion_data.messages import read_messages, read_tools
from fusion_data.rows import (
    AnyRow,
    CompletionRow,
    Message,
    MessagesRow,
    PreferenceRow,
    Row,
    RowType,
    TextRow,
    finished_row,
)

FIELDS: dict[RowType, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
}
"""The fields that a row of each type must have."""
_USED: dict[RowType, frozenset[str]] = {
    kind: frozenset((*fields, "tools") if kind == "messages" else fields) for kind, fields in FIELDS.items()
}
KNOWN_FIELDS = frozenset().union(*_USED.values())
# Which type a field makes a row: `prompt` alone decides nothing.
_DECIDING: dict[str, RowType] = {
    "text": "text",
    "completion": "completion",
    "messages": "messages",
    "chosen": "preference",
    "rejected": "preference",
}
JSON_FIELDS = frozenset({"messages", "tools"})
"""The fields that formats of flat columns may hold as strings of JSON."""
_NEEDED = 'a row is {"text"}, {"prompt", "completion"}, {"messages"} or {"prompt", "chosen", "rejected"}'


def check_columns(names: Collection[str]) -> None:
    """Whether a file with these columns can hold rows. Raises FileError."""
    if not any(set(fields) <= set(names) for fields in FIELDS.values()):
        shown = ", ".join(repr(name[:40]) for name in list(names)[:5])
        raise FileError("missing_columns", f"the columns are {shown or 'none'}; {_NEEDED}")


def normalise(record: object, line: int, limits: Limits) -> Row | BadRow:
    """The row that a record is. Fields that its type does not know are not used, and are counted by name."""
    findings = Findings(line, limits)
    row = _read(record, findings)
    if row is None or findings.faults:
        return BadRow(tuple(findings.faults))
    return finished_row(line, row, findings.text_bytes, frozenset(findings.unused))


def _read(record: object, findings: Findings) -> AnyRow | None:
    if not isinstance(record, dict):
        findings.add("not_an_object", (), f"the row is {json_name(record)}; {_NEEDED}")
        return None
    present = {name for name in KNOWN_FIELDS if record.get(name) is not None}
    kinds = {kind for name, kind in _DECIDING.items() if name in present}
    if len(kinds) > 1:
        fields = ", ".join(sorted(present & _DECIDING.keys()))
        findings.add("ambiguous_row", (), f"the row has {fields}; {_NEEDED}")
        return None
    kind = kinds.pop() if kinds else _kind_without_values(record, findings)
    if kind is None:
        return None
    missing = [name for name in FIELDS[kind] if name not in present]
    for name in missing:
        findings.add(
            "missing_field", (name,), f"'{name}' {'has no value' if name in record else 'is missing'}; {_NEEDED}"
        )
    findings.unused.update(record.keys() - _USED[kind])
    return None if missing else _READERS[kind](record, findings)


def _kind_without_values(record: Mapping[str, Any], findings: Findings) -> RowType | None:
    """The type of a row whose deciding fields are null or missing; None, with a fault, where nothing tells it."""
    kinds = {kind for name, kind in _DECIDING.items() if name in record}
    if len(kinds) == 1:
        return kinds.pop()
    if not kinds and record.get("prompt") is not None:
        return "completion"
    names = ", ".join(sorted(map(repr, record))[:5])
    findings.add("unknown_row_type", (), f"the row has {names or 'no fields'}; {_NEEDED}")
    return None


def _read_text(record: Mapping[str, Any], findings: Findings) -> AnyRow | None:
    text = findings.full_text(record["text"], ("text",))
    return None if text is None else TextRow(text)


def _read_completion(record: Mapping[str, Any], findings: Findings) -> AnyRow | None:
    prompt = findings.full_text(record["prompt"], ("prompt",))
    completion = findings.full_text(record["completion"], ("completion",))
    return None if prompt is None or completion is None else CompletionRow(prompt, completion)


def _read_conversation(record: Mapping[str, Any], findings: Findings) -> AnyRow | None:
    messages = read_messages(record["messages"], ("messages",), findings, is_answer=True)
    tools = record.get("tools")
    offered = None if tools is None else read_tools(tools, ("tools",), findings)
    return None if messages is None else MessagesRow(messages, offered)


def _read_preference(record: Mapping[str, Any], findings: Findings) -> AnyRow | None:
    prompt = _text_or_messages(record["prompt"], ("prompt",), findings, is_answer=False)
    chosen = _text_or_messages(record["chosen"], ("chosen",), findings, is_answer=True)
    rejected = _text_or_messages(record["rejected"], ("rejected",), findings, is_answer=True)
    if prompt is None or chosen is None or rejected is None:
        return None
    if isinstance(chosen, str) is not isinstance(rejected, str):
        findings.add("wrong_type", ("rejected",), "chosen and rejected must both be texts or both be messages")
    elif chosen == rejected:
        findings.add("equal_pair", ("rejected",), "rejected is the same as chosen")
    return PreferenceRow(prompt, chosen, rejected)


def _text_or_messages(value: object, path: Path, findings: Findings, *, is_answer: bool) -> str | list[Message] | None:
    if isinstance(value, list):
        return read_messages(value, path, findings, is_answer=is_answer)
    if not isinstance(value, str):
        findings.wrong_type(value, path, "a string or an array of messages")
        return None
    return findings.full_text(value, path)


_READERS = {
    "text": _read_text,
    "completion": _read_completion,
    "messages": _read_conversation,
    "preference": _read_preference,
}
