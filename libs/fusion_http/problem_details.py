"""Every error as RFC 9457 problem+json, with a code of the one registry."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog
from botocore.exceptions import BotoCoreError
from fusion_core.db.pool import POSTGRES_AWAY
from fusion_core.problems import PROBLEMS
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import Send

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
    429: "rate_limited",
}
_HEADERS_OF_STATUS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "2"}}

# What the drivers raise while Postgres or S3 is restarting, unreachable or full of connections.
STORE_DOWN = (*POSTGRES_AWAY, BotoCoreError)


class FieldError(msgspec.Struct, frozen=True):
    """`pointer` is a JSON pointer (RFC 6901) into the body ("": the whole of it), or the name of a parameter."""

    pointer: str
    detail: str


class ProblemError(Exception):
    """Ends a request with a problem of the registry. The detail says what is wrong with this very request."""

    def __init__(
        self,
        code: str,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = PROBLEMS[code]
        self.detail = detail
        self.errors = list(errors)
        self.headers = headers


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


def invalid(errors: Sequence[FieldError]) -> ProblemError:
    count = len(errors)
    return ProblemError("validation_failed", "1 field is wrong" if count == 1 else f"{count} fields are wrong", errors)


def describe(code: str, detail: str = "", errors: Sequence[FieldError] = ()) -> ProblemDetails:
    """The body for one code; without a detail of its own it shows the registry's advice alone."""
    problem = PROBLEMS[code]
    return ProblemDetails(
        type=f"/api/docs#{code}",
        title=problem.title,
        status=problem.status or 500,
        detail=f"{detail}. {problem.advice}" if detail else problem.advice,
        code=code,
        request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
        errors=list(errors),
    )


def respond(
    code: str, detail: str = "", errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
) -> Response[ProblemDetails]:
    """The answer for one code, which the log's line of this request names, too."""
    structlog.contextvars.bind_contextvars(problem=code)
    body = describe(code, detail, errors)
    extra = _HEADERS_OF_STATUS.get(body.status, {})
    return Response(body, status_code=body.status, media_type=MEDIA_TYPE, headers={**extra, **(headers or {})})


async def send_not_ready(send: Send, detail: str) -> None:
    """503 outside of the application, with the connection's end."""
    structlog.contextvars.bind_contextvars(problem="not_ready")
    body = msgspec.json.encode(describe("not_ready", detail))
    extra = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), "Connection": "close"}
    headers = [(name.lower().encode(), value.encode()) for name, value in (extra | _HEADERS_OF_STATUS[503]).items()]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def on_problem(_: Request[Any, Any, Any], error: ProblemError) -> Response[ProblemDetails]:
    return respond(error.problem.code, error.detail, error.errors, error.headers)


def on_validation_error(_: Request[Any, Any, Any], error: ValidationException) -> Response[ProblemDetails]:
    """A parameter of the path, the query or a header; bodies are checked before Litestar reads them."""
    extra = error.extra if isinstance(error.extra, list) else []
    named = [FieldError(str(item.get("key", "")), str(item.get("message", ""))) for item in extra]
    return respond("validation_failed", error.detail, named)


def on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[ProblemDetails]:
    code = _CODE_OF_STATUS.get(error.status_code, "internal")
    return respond(code, "" if code in ("not_found", "internal") else error.detail, headers=error.headers)


def on_store_down(_: Request[Any, Any, Any], error: Exception) -> Response[ProblemDetails]:
    """Postgres or S3 is away for a moment: the request may be repeated."""
    log.warning("store_down", error=repr(error))
    return respond("not_ready", "a store does not answer")


def on_unexpected(_: Request[Any, Any, Any], error: Exception) -> Response[ProblemDetails]:
    log.error("request_failed", exc_info=error)
    return respond("internal")


HANDLERS: Any = {  # of every application: Litestar takes the nearest class
    ProblemError: on_problem,
    ValidationException: on_validation_error,
    HTTPException: on_http_error,
    Exception: on_unexpected,
} | dict.fromkeys(STORE_DOWN, on_store_down)
