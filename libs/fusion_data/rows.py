"""The four types of rows as they lie in shards: every format and spelling comes down to these."""

from typing import Any, Literal, NamedTuple

import msgspec

RowType = Literal["text", "completion", "messages", "preference"]
ROW_TYPES: tuple[RowType, ...] = ("text", "completion", "messages", "preference")
Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


class FunctionCall(msgspec.Struct):
    """`arguments` is an object, never a string: chat templates write it out themselves."""

    name: str
    arguments: dict[str, Any]


class ToolCall(msgspec.Struct, omit_defaults=True):
    type: Literal["function"]
    function: FunctionCall
    id: str | None = None


class Message(msgspec.Struct, omit_defaults=True):
    """`content` is a string, empty where the assistant only calls tools."""

    role: Role
    content: str
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class TextRow(msgspec.Struct):
    text: str


class CompletionRow(msgspec.Struct):
    prompt: str
    completion: str


class MessagesRow(msgspec.Struct, omit_defaults=True):
    """`tools` are the functions offered to the assistant, as JSON schema objects."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


class PreferenceRow(msgspec.Struct):
    """`chosen` is a better answer to `prompt` than `rejected`. Stored; training on it is for later."""

    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message]


AnyRow = TextRow | CompletionRow | MessagesRow | PreferenceRow
_encode = msgspec.json.Encoder().encode


class Row(NamedTuple):
    """A good row. `encoded` is its line in a shard, `content` what the held-out split and duplicates go by.

    `text_bytes` is the UTF-8 size of its texts, `unused` the fields that no training uses.
    """

    line: int
    type: RowType
    encoded: bytes
    content: bytes
    text_bytes: int
    unused: frozenset[str] = frozenset()


def finished_row(line: int, row: AnyRow, text_bytes: int, unused: frozenset[str]) -> Row:
    """The texts of `row` must be free of lone surrogates."""
    encoded = _encode(row)
    if isinstance(row, TextRow):
        # The text alone, so that a plain text file and a JSONL file of the same texts hold out the same rows.
        return Row(line, "text", encoded, row.text.encode(), text_bytes, unused)
    kind: RowType = "preference"
    if isinstance(row, CompletionRow):
        kind = "completion"
    elif isinstance(row, MessagesRow):
        kind = "messages"
    return Row(line, kind, encoded, encoded, text_bytes, unused)
