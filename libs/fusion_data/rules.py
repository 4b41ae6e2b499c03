"""The closed list of rules that a dataset must keep. docs/datasets.md shows it as a table, and a test compares."""

from typing import Literal

import msgspec

Scope = Literal["row", "file"]


class Rule(msgspec.Struct, frozen=True):
    """`code` is one of fusion_core.problems. A broken row rule can be skipped, a broken file rule never."""

    name: str
    scope: Scope
    code: str
    meaning: str
    fix: str


_ALL = (
    Rule(
        "unknown_format",
        "file",
        "unsupported_format",
        "The file's name does not end in a known format.",
        "Name it after what it holds: .jsonl, .ndjson, .txt, .csv or .parquet, then .gz or .zst if it is compressed.",
    ),
    Rule(
        "format_mismatch",
        "file",
        "unsupported_format",
        "The content is of another format or compression than the name says.",
        "Rename the file after its content, or write it again in the format of its name.",
    ),
    Rule(
        "wrong_encoding",
        "file",
        "invalid_encoding",
        "The file is in another encoding than UTF-8.",
        "Save the file as UTF-8; a byte order mark is fine.",
    ),
    Rule(
        "damaged_file",
        "file",
        "file_damaged",
        "The compressed stream or the Parquet file cannot be read.",
        "Make the file again, check that it opens on your machine, and upload it again.",
    ),
    Rule(
        "cut_off_file",
        "file",
        "upload_truncated",
        "The file ends in the middle of a row or of the compressed stream.",
        "Upload the whole file again.",
    ),
    Rule(
        "expands_too_far",
        "file",
        "dataset_too_large",
        "The file is over the limit once it is decompressed, in bytes or as a multiple of its own size.",
        "Split the data into several files, or upload it uncompressed.",
    ),
    Rule(
        "too_many_rows",
        "file",
        "dataset_too_large",
        "The dataset has more rows than one dataset may have.",
        "Split the data into several datasets.",
    ),
    Rule(
        "too_many_columns",
        "file",
        "dataset_too_large",
        "The file has more columns than the limit.",
        "Keep only the columns that a row uses.",
    ),
    Rule(
        "row_group_too_large",
        "file",
        "dataset_too_large",
        "A row group of a Parquet file is over the limit.",
        "Write the file with smaller row groups, for example row_group_size=10000.",
    ),
    Rule(
        "too_much_memory",
        "file",
        "dataset_too_large",
        "Reading the file takes more memory than one dataset may take.",
        "Write shorter rows; in Parquet also smaller row groups, for example row_group_size=10000.",
    ),
    Rule(
        "too_slow",
        "file",
        "dataset_too_large",
        "Reading the files takes longer than one dataset may take.",
        "Split the data into several datasets.",
    ),
    Rule(
        "missing_columns",
        "file",
        "invalid_row",
        "A CSV or Parquet file has no columns that make a row.",
        "Name the columns text, or prompt and completion, or messages, or prompt, chosen and rejected, in the header.",
    ),
    Rule(
        "bad_header",
        "file",
        "invalid_row",
        "The header of a CSV file is not one line of distinct names, separated by commas.",
        "Give each column one name in the first line and separate them by commas.",
    ),
    Rule(
        "column_type",
        "file",
        "invalid_row",
        "A column of a Parquet file has a type that it cannot have.",
        "Write texts as strings, and messages and tools as lists of structs or as strings of JSON.",
    ),
    Rule(
        "open_quote",
        "file",
        "invalid_row",
        "A quoted field of a CSV file is not closed within the limit of a record.",
        'Close the quote, and write a quote inside a quoted field twice ("").',
    ),
    Rule(
        "empty_file",
        "file",
        "dataset_empty",
        "The file holds no rows.",
        "Upload a file with data in it, or leave it out.",
    ),
    Rule(
        "invalid_utf8",
        "row",
        "invalid_encoding",
        "A byte is not UTF-8.",
        "Save the file as UTF-8.",
    ),
    Rule(
        "nul_character",
        "row",
        "invalid_encoding",
        "A text holds NUL (U+0000), raw or as an escape.",
        "Remove the character.",
    ),
    Rule(
        "lone_surrogate",
        "row",
        "invalid_encoding",
        "A text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character.",
        "Write the whole pair or remove the half; cutting texts by UTF-16 units makes such halves.",
    ),
    Rule(
        "line_too_long",
        "row",
        "dataset_too_large",
        "A line, a paragraph or a row is over the limit.",
        "Split it into several rows.",
    ),
    Rule(
        "invalid_json",
        "row",
        "invalid_row",
        "A line, or a cell that must hold JSON, is not strict JSON.",
        "Write one JSON object a line, with a JSON library.",
    ),
    Rule(
        "duplicate_key",
        "row",
        "invalid_row",
        "An object has the same key twice, so that one value would be lost.",
        "Keep one of the two.",
    ),
    Rule(
        "too_deep",
        "row",
        "invalid_row",
        "Arrays and objects are nested deeper than the limit.",
        "Flatten the value, or write it as a string.",
    ),
    Rule(
        "csv_syntax",
        "row",
        "invalid_row",
        "A record of a CSV file breaks the rules of quoting.",
        'Put a field that holds quotes, commas or line ends in quotes, and write its quotes twice ("").',
    ),
    Rule(
        "csv_columns",
        "row",
        "invalid_row",
        "A record of a CSV file has more or fewer fields than the header.",
        "Give the record one field a column; put fields that hold commas in quotes.",
    ),
    Rule(
        "not_an_object",
        "row",
        "invalid_row",
        "A row is something else than an object.",
        'Write one object a line, without brackets or commas around it: {"text": "..."}.',
    ),
    Rule(
        "unknown_row_type",
        "row",
        "invalid_row",
        "The fields of a row are none of the four types of rows.",
        "Use text, or prompt and completion, or messages, or prompt, chosen and rejected.",
    ),
    Rule(
        "ambiguous_row",
        "row",
        "invalid_row",
        "The fields of a row are those of several types of rows.",
        "Keep the fields of one type and remove the others.",
    ),
    Rule(
        "missing_field",
        "row",
        "invalid_row",
        "A field that must be there is missing or null.",
        "Add the field.",
    ),
    Rule(
        "wrong_type",
        "row",
        "invalid_row",
        "A value has another type than it must have.",
        "Write the value with the type that the message names.",
    ),
    Rule(
        "empty_value",
        "row",
        "invalid_row",
        "A text, a list or a name is empty or white space alone.",
        "Give it a value or remove the row.",
    ),
    Rule(
        "number_range",
        "row",
        "invalid_row",
        "A number is too large to be kept as it is.",
        "Write the number as a string.",
    ),
    Rule(
        "unknown_role",
        "row",
        "invalid_row",
        "A role is none of system, user, assistant and tool.",
        "Use one of the four.",
    ),
    Rule(
        "message_order",
        "row",
        "invalid_row",
        "A system message is not the first, or a tool message does not follow an assistant's tool calls.",
        "Put the system message first, and each tool message after the turn that called the tool.",
    ),
    Rule(
        "no_assistant_turn",
        "row",
        "invalid_row",
        "No message of the assistant has content or tool calls: there is nothing to learn.",
        "Add the assistant's turn or remove the row.",
    ),
    Rule(
        "misplaced_field",
        "row",
        "invalid_row",
        "tool_calls stand elsewhere than in an assistant message, or tool_call_id elsewhere than in a tool message.",
        "Move or remove the field.",
    ),
    Rule(
        "unsupported_content",
        "row",
        "invalid_row",
        "A part of a content is not text.",
        'Keep the parts {"type": "text", "text": "..."}; images and audio cannot be trained on.',
    ),
    Rule(
        "invalid_tool_call",
        "row",
        "invalid_row",
        "The arguments of a tool call are not a JSON object, or its type is not function.",
        "Write the arguments as an object or as a string that holds one.",
    ),
    Rule(
        "unknown_tool_call_id",
        "row",
        "invalid_row",
        "A tool message answers no tool call of the turn before it, or does not say which one.",
        "Set tool_call_id to the id of the call that it answers.",
    ),
    Rule(
        "equal_pair",
        "row",
        "invalid_row",
        "chosen and rejected are the same: there is nothing to prefer.",
        "Remove the row, or correct one of them.",
    ),
    Rule(
        "too_many_messages",
        "row",
        "dataset_too_large",
        "A row has more messages than the limit.",
        "Split the conversation into several rows.",
    ),
)
RULES: dict[str, Rule] = {rule.name: rule for rule in _ALL}
