"""Every error as RFC 9457 problem+json, with a code of the one registry and every bad field named at once."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

import msgspec
import structlog
from fusion_core.problems import PROBLEMS
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

log = structlog.get_logger()
MEDIA_TYPE = "application/problem+json"
_CODE_OF_STATUS = {
    400: "malformed_body",
    401: "unauthorized",
    403: "forbidden_scope",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    422: "validation_failed",
}


class FieldError(msgspec.Struct, frozen=True):
    """`pointer` is a JSON pointer (RFC 6901) into the body, or the name of a parameter."""

    pointer: str
    detail: str


class ProblemError(Exception):
    """Ends a request with a problem of the registry. The detail says what is wrong with this very request."""

    def __init__(self, code: str, detail: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.problem = PROBLEMS[code]
        self.detail = detail
        self.errors = list(errors)


class ProblemDetails(msgspec.Struct, frozen=True):
    """The body of every error."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldError] = []


def not_found(what: str, pointer: str = "") -> ProblemError:
    return ProblemError("not_found", f"no such {what}", [FieldError(pointer, f"no such {what}")] if pointer else [])


def respond(request: Request[Any, Any, Any], code: str, detail: str, errors: Sequence[FieldError]) -> Response[Any]:
    problem = PROBLEMS[code]
    status = problem.status or 500
    body = ProblemDetails(
        type=f"/api/docs#{code}",
        title=problem.title,
        status=status,
        detail=f"{detail}. {problem.advice}" if detail else problem.advice,
        code=code,
        request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
        errors=list(errors),
    )
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def on_problem(request: Request[Any, Any, Any], error: ProblemError) -> Response[Any]:
    return respond(request, error.problem.code, error.detail, error.errors)


async def keep_body(request: Request[Any, Any, Any]) -> None:
    """Before every operation: error handlers cannot wait, so the body they explain is read here."""
    request.state.body = await request.body()


def on_validation_error(request: Request[Any, Any, Any], error: ValidationException) -> Response[Any]:
    """msgspec stops at the first bad field: read the body again and name them all."""
    handler = request.route_handler
    field = getattr(handler, "parsed_data_field", None)
    if field is not None:
        try:
            body = msgspec.json.decode(request.state.body)
        except msgspec.DecodeError as broken:
            return respond(request, "malformed_body", str(broken), [])
        errors = find_errors(field.annotation, body)
        if errors:
            return respond(request, "validation_failed", f"{len(errors)} fields are wrong", errors)
    extra = error.extra if isinstance(error.extra, list) else []
    named = [FieldError(str(item.get("key", "")), str(item.get("message", ""))) for item in extra]
    return respond(request, "validation_failed", error.detail, named)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    code = _CODE_OF_STATUS.get(error.status_code, "internal")
    return respond(request, code, "" if code in ("not_found", "internal") else error.detail, [])


def on_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error("request_failed", exc_info=error)
    return respond(request, "internal", "", [])


# -- naming every bad field ----------------------------------------------------------------------------------------


def find_errors(kind: Any, value: Any, pointer: str = "") -> list[FieldError]:
    """Every fault of `value` against a type: Structs are looked into field by field."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            return [FieldError(pointer or "/", str(error).split(" - at `")[0])]
        return []
    if not isinstance(value, Mapping):
        return [FieldError(pointer or "/", f"expected an object, got {type(value).__name__}")]
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    errors = [FieldError(f"{pointer}/{name}", _unknown(name, list(fields))) for name in value if name not in fields]
    for name, field in fields.items():
        if name in value:
            errors += find_errors(hints[field.name], value[name], f"{pointer}/{name}")
        elif field.required:
            errors.append(FieldError(f"{pointer}/{name}", "is required"))
    return errors


def _unknown(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown field; {hint}"
