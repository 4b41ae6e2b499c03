"""The examples of docs/api.md: each asks for an operation that there is, as the OpenAPI document has it."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import jsonschema_rs
import pytest

from tests.integration.api.documented import document, operation_of

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text()
AN_ID = "0198b3a2-6f00-7000-8000-000000000000"


class Example(NamedTuple):
    """A call of the page's shell function `api`, with ids in place of the shell's variables and substitutions."""

    heading: str
    method: str
    target: str
    body: str | None


def _without_shell(text: str) -> str:
    """Ids where the shell puts them: `$NAME` and `$(command)`, which may hold another; one that jq prints is quoted."""
    while (start := text.find("$(")) >= 0:
        depth, end = 1, start + 2
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        raw = "jq" not in text[start:end] or " -r" in text[start:end]
        text = text[:start] + (AN_ID if raw else rf"\"{AN_ID}\"") + text[end:]
    return re.sub(r"\$[A-Z_]+", AN_ID, text)


def _words(call: str) -> list[str]:
    """Those of the first command of a pipeline."""
    lexer = shlex.shlex(call, posix=True, punctuation_chars="|>")
    lexer.whitespace_split = True
    words = list(lexer)
    ends = [number for number, word in enumerate(words) if word in ("|", ">")]
    return words[: ends[0]] if ends else words


def _examples() -> list[Example]:
    found = []
    for heading, section in re.findall(r"^### `([^`]+)`\n(.*?)(?=^#{2,3} |\Z)", PAGE, re.MULTILINE | re.DOTALL):
        for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
            script = _without_shell(block.replace("\\\n", " "))
            for call in re.findall(r"^api (?:[^\"'\n]|\"(?:\\.|[^\"\\])*\"|'[^']*')*", script, re.MULTILINE):
                words = _words(call)
                options = dict(pairwise(words[2:]))
                found.append(Example(heading, options.get("-X", "GET"), words[1], options.get("-d")))
    return found


EXAMPLES = _examples()


def test_there_is_one_for_nearly_every_operation() -> None:
    """Some are asked inside others, by `$(api ...)`."""
    assert len({example.heading for example in EXAMPLES}) > 45


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.method} {example.target[:60]}")
def test_an_example_asks_for_what_the_document_has(example: Example) -> None:
    address = urlsplit(f"/api{example.target}")
    entry = operation_of(example.method, address.path)
    assert entry is not None
    assert entry["operationId"] == _operation_id(example.heading)
    parameters = {one["name"]: one["schema"] for one in entry["parameters"] if one["in"] == "query"}
    for name, value in parse_qsl(address.query):
        assert name in parameters, name
        _check(_scalar(parameters[name]), _typed(value, _scalar(parameters[name])))
    if example.body is not None:
        _check(entry["requestBody"]["content"]["application/json"]["schema"], json.loads(example.body))
    elif "requestBody" in entry:
        assert not entry["requestBody"]["required"]


def _operation_id(heading: str) -> Any:
    method, path = heading.split()
    return document()["paths"][path][method.lower()]["operationId"]


def _scalar(schema: dict[str, Any]) -> dict[str, Any]:
    items: dict[str, Any] = schema.get("items", schema)
    return items


def _typed(value: str, schema: dict[str, Any]) -> Any:
    return int(value) if schema.get("type") == "integer" else value


def _check(schema: dict[str, Any], value: Any) -> None:
    complete = schema | {"components": document()["components"]}
    jsonschema_rs.Draft202012Validator(complete, validate_formats=True).validate(value)
