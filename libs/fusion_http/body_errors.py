"""Requests, checked before Litestar reads them: every bad field is named, where msgspec stops at the first one."""

import difflib
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import islice
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from litestar import Request
from litestar.params import QueryParameter

from fusion_http.problem_details import FieldError, ProblemError, invalid

MAX_ERRORS = 100  # a body full of nonsense is not worth a megabyte of answer
_CONTROL_CHARACTER = "contains a control character"


async def check_request(request: Request[Any, Any, Any]) -> None:
    """Before every operation. Raises ProblemError malformed_body or validation_failed."""
    errors = list(islice(_query_errors(request), MAX_ERRORS))
    if errors:
        raise invalid(errors)
    await _check_body(request)


def _query_errors(request: Request[Any, Any, Any]) -> Iterator[FieldError]:
    """A filter that is misspelt would be a filter left out; an operation that takes none has nothing to mistake."""
    known = [
        parameter.kwarg_definition.name or name
        for name, parameter in request.route_handler.parsed_fn_signature.parameters.items()
        if isinstance(parameter.kwarg_definition, QueryParameter)
    ]
    for name, value in request.query_params.multi_items() if known else ():
        if name not in known:
            yield FieldError(name, _unknown("parameter", name, known))
        elif value in ("", "null"):  # Litestar would take it for a parameter left out
            yield FieldError(name, "has no value; leave it out")
        elif _has_control_character(value):  # Postgres takes no NUL
            yield FieldError(name, _CONTROL_CHARACTER)


async def _check_body(request: Request[Any, Any, Any]) -> None:
    """Litestar converts leniently ("2" for 2); here types must be JSON's own."""
    field = request.route_handler.parsed_data_field
    if field is None:
        return
    raw = await request.body()
    if not raw and field.is_optional:
        return
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as broken:
        raise ProblemError("malformed_body", str(broken)) from broken
    except RecursionError as broken:
        raise ProblemError("malformed_body", "the document is nested too deeply") from broken
    errors = list(islice(find_errors(field.annotation, body), MAX_ERRORS))
    if errors:
        raise invalid(errors)


def find_errors(kind: Any, value: Any, pointer: str = "") -> Iterator[FieldError]:
    """Every fault of a decoded JSON value against a type; Structs and lists are looked into."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    present = _without_none(plain)
    if present is not None and value is not None:
        yield from find_errors(present, value, pointer)
        return
    tagged = _tagged(plain)
    if tagged:
        yield from _tagged_errors(tagged, value, pointer)
        return
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        yield from _struct_errors(plain, value, pointer)
        return
    if get_origin(plain) is list and isinstance(value, list):
        (item_kind,) = get_args(plain)
        inner = [error for at, item in enumerate(value) for error in find_errors(item_kind, item, f"{pointer}/{at}")]
        if inner:
            yield from inner
            return
    if get_origin(plain) is dict and isinstance(value, Mapping):
        yield from _mapping_errors(kind, value, pointer)
        return
    if isinstance(value, str) and _has_control_character(value):
        yield FieldError(pointer, _CONTROL_CHARACTER)
        return
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # to JSON Schema 2.0 is an integer
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        known = f"; known: {', '.join(map(str, get_args(plain)))}" if get_origin(plain) is Literal else ""
        yield FieldError(pointer, f"{error}{known}")


def _has_control_character(value: str) -> bool:
    return any(character < " " or character == "\x7f" for character in value)


def _without_none(kind: Any) -> Any:
    """X of `X | None`, which may itself be a union; None for any other type."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    others = tuple(one for one in members if one is not type(None))
    return reduce(or_, others) if 0 < len(others) < len(members) else None


def _mapping_errors(kind: Any, value: Mapping[str, Any], pointer: str) -> Iterator[FieldError]:
    """A bad name or value is named by its member; only what is wrong with the whole of it by itself."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    key_kind, value_kind = get_args(plain)
    inner = []
    for name, one in value.items():
        at = f"{pointer}/{_escaped(name)}"
        inner += [FieldError(at, f"its name: {error.detail}") for error in find_errors(key_kind, name, at)]
        inner += find_errors(value_kind, one, at)
    if inner:
        yield from inner
        return
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        yield FieldError(pointer, str(error))


def _tagged(kind: Any) -> dict[str, type[msgspec.Struct]]:
    """The members of a union of tagged Structs by their tag; empty for any other type."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    if not all(isinstance(one, type) and issubclass(one, msgspec.Struct) for one in members):
        return {}
    return {str(one.__struct_config__.tag): one for one in members}


def _tagged_errors(members: dict[str, type[msgspec.Struct]], value: Any, pointer: str) -> Iterator[FieldError]:
    """Which member is meant decides what the other fields must be, so a wrong tag is named alone."""
    if not isinstance(value, Mapping):
        yield FieldError(pointer, "expected an object")
        return
    tag_field = str(next(iter(members.values())).__struct_config__.tag_field)
    tag = value.get(tag_field)
    if tag_field not in value:
        yield FieldError(f"{pointer}/{tag_field}", f"is required; known: {', '.join(members)}")
    elif not isinstance(tag, str) or tag not in members:
        yield FieldError(f"{pointer}/{tag_field}", _unknown("value", tag, list(members)))
    else:
        rest = {name: inner for name, inner in value.items() if name != tag_field}
        yield from _struct_errors(members[tag], rest, pointer)


def _struct_errors(kind: type[msgspec.Struct], value: Any, pointer: str) -> Iterator[FieldError]:
    if not isinstance(value, Mapping):
        yield FieldError(pointer, "expected an object")
        return
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name in value:
        if name not in fields:
            yield FieldError(f"{pointer}/{_escaped(name)}", _unknown("field", name, list(fields)))
    for name, field in fields.items():
        if name in value:
            yield from find_errors(hints[field.name], value[name], f"{pointer}/{name}")
        elif field.required:
            yield FieldError(f"{pointer}/{name}", "is required")


def _escaped(name: str) -> str:
    """A member's name inside a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _unknown(what: str, given: Any, known: list[str]) -> str:
    nearest = difflib.get_close_matches(str(given), known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown {what}; {hint}"
