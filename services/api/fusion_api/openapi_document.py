"""The OpenAPI 3.1 document: Litestar's own, with exact schemas, every problem of every operation, and examples.

An operation declares beside its route what only it knows: `problems` (codes beyond those that every operation of its
kind has), `example` (a request body), `answer` (an example of what it answers) and `also` (statuses beside its usual
one that answer the same).
"""

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, NamedTuple, get_args, get_origin

import msgspec
from fusion_core.problems import PROBLEMS
from fusion_http.problem_details import MEDIA_TYPE, ProblemDetails
from litestar import Litestar, Request, Response, get
from litestar.enums import OpenAPIMediaType
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.response import Stream

from fusion_api.auth import needs

Json = dict[str, Any]
Key = tuple[str, str]  # the path and the method
_REF = "#/components/schemas/{name}"
_TEXT = r"^[^\x00-\x1f\x7f]*$"  # body_errors.py refuses control characters in every string

_OF_EVERY_CONNECTION = ("request_timeout", "headers_too_large", "internal")
_OF_EVERY_KEY = ("unauthorized", "forbidden_scope", "rate_limited", "not_ready")
_OF_BODIES = ("malformed_body", "payload_too_large", "validation_failed")
_OF_IDEMPOTENCY_KEYS = ("validation_failed", "idempotency_conflict")

_HEADERS = {
    "X-Request-ID": ("string", "quote it when you report something"),
    "RateLimit-Limit": ("integer", "requests that this key may send a minute"),
    "RateLimit-Remaining": ("integer", "requests left in this minute"),
    "RateLimit-Reset": ("integer", "seconds until the minute is over"),
    "Retry-After": ("integer", "seconds to wait before the next try"),
    "Idempotent-Replayed": ("string", "'true' when an earlier request with this key made what is answered"),
    "Link": ("string", 'the next page as rel="next" (RFC 8288), when there may be one'),
    "WWW-Authenticate": ("string", "how to authenticate"),
}
_HEADERS_OF_PROBLEM = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
_HEADERS_OF_RATE = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")


class Operation(NamedTuple):
    """One operation of the document and the handler that serves it."""

    path: str
    method: str
    entry: Json
    handler: HTTPRouteHandler

    @property
    def key(self) -> Key:
        return self.path, self.method

    @property
    def scopes(self) -> tuple[str, ...]:
        """A key with any one of them will do; none: the operation is public."""
        guards = self.handler.resolve_guards()
        return next((guard.scopes for guard in guards if isinstance(guard, needs)), ())

    @property
    def is_public(self) -> bool:
        return not self.scopes


class DocumentPlugin(JsonRenderPlugin):
    """What the browsable page reads: the document below, in place of Litestar's."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return _document_json(request.app)


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def get_document(request: Request[Any, Any, Any]) -> Response[bytes]:
    return Response(_document_json(request.app), media_type=OpenAPIMediaType.OPENAPI_JSON)


def _document_json(app: Litestar) -> bytes:
    """Built once: it takes a tenth of a second, and nobody needs a key to ask for it."""
    if "openapi_json" not in app.state:
        app.state.openapi_json = msgspec.json.encode(build_document(app))
    built: bytes = app.state.openapi_json
    return built


def build_document(app: Litestar) -> Json:
    """The document of an application."""
    document: Json = msgspec.to_builtins(app.openapi_schema.to_schema())
    operations = list(_operations(app, document))
    bodies, body_components = _schemas({one.key: body for one in operations if (body := _body_of(one)) is not None})
    answers, answer_components = _schemas(
        {one.key: sent for one in operations if (sent := _answer_of(one)) is not None}
    )
    _, problem_components = _schemas({("", ""): ProblemDetails})
    _refuse_control_characters([bodies, body_components])
    for one in operations:
        _complete(one, bodies.get(one.key), answers.get(one.key))
    document["components"]["schemas"] = dict(sorted((answer_components | problem_components | body_components).items()))
    document["components"]["headers"] = {
        name: {"schema": {"type": kind}, "description": says} for name, (kind, says) in _HEADERS.items()
    }
    return document


def _schemas(kinds: dict[Key, Any]) -> tuple[dict[Key, Json], Json]:
    """The schema of each type, and the components that they refer to."""
    schemas, components = msgspec.json.schema_components(kinds.values(), ref_template=_REF)
    return dict(zip(kinds, schemas, strict=True)), components


def _operations(app: Litestar, document: Json) -> Iterator[Operation]:
    for route in app.routes:
        for path, methods in document["paths"].items():
            if getattr(route, "path_format", None) != path:
                continue
            for handler in getattr(route, "route_handlers", ()):
                for method in handler.http_methods:
                    if method.lower() in methods:
                        yield Operation(path, method.lower(), methods[method.lower()], handler)


def _body_of(one: Operation) -> Any:
    field = one.handler.parsed_data_field
    return None if field is None else field.annotation


def _is_optional(one: Operation) -> bool:
    return type(None) in get_args(_body_of(one))


def _answer_of(one: Operation) -> Any:
    """The type of the answer's JSON; None for operations that answer nothing."""
    annotation = one.handler.parsed_return_field.annotation
    for member in (annotation, *get_args(annotation)):
        if get_origin(member) is Response:
            return get_args(member)[0]
    return None if annotation in (None, type(None)) else annotation


def _complete(one: Operation, body: Json | None, answer: Json | None) -> None:
    entry, opt = one.entry, one.handler.opt
    entry["operationId"] = one.handler.handler_name.rsplit(".", 1)[-1]
    entry.pop("deprecated", None)
    entry["parameters"] = [_parameter(parameter) for parameter in entry.get("parameters", [])]
    if body is not None:
        example = {"example": opt["example"]} if "example" in opt else {}
        entry["requestBody"] = {
            "required": not _is_optional(one),
            "content": {"application/json": {"schema": body, **example}},
        }
    usual = next(int(status) for status in entry["responses"] if status.startswith("2"))
    good = {str(status): _success(one, status, answer) for status in sorted({usual, *opt.get("also", ())})}
    entry["responses"] = good | _problems(one)
    entry["security"] = [{"key": [scope]} for scope in one.scopes]


def _parameter(parameter: Json) -> Json:
    """Without `null`, which a header, a path or a query cannot hold, and without saying what goes without saying."""
    schema = parameter.get("schema", {})
    for member in schema.pop("oneOf", ()):
        if member.get("type") != "null":
            schema |= member
    schema.pop("description", None)
    kept = {"name", "in", "description", "schema", "required"}
    return {name: value for name, value in parameter.items() if name in kept}


def _success(one: Operation, status: int, schema: Json | None) -> Json:
    headers = ["X-Request-ID"] + ([] if one.is_public else list(_HEADERS_OF_RATE))
    if one.method == "post":
        headers.append("Idempotent-Replayed")
    if any(parameter["name"] == "after" for parameter in one.entry["parameters"]):
        headers.append("Link")
    example = {"example": one.handler.opt["answer"]} if "answer" in one.handler.opt else {}
    content: Json = {} if schema is None else {"application/json": {"schema": schema, **example}}
    if Stream in get_args(one.handler.parsed_return_field.annotation):
        content["text/event-stream"] = {"schema": {"type": "string"}}
    described: Json = {"description": HTTPStatus(status).phrase, "headers": _header_refs(headers)}
    return described | ({"content": content} if content else {})


def _problems(one: Operation) -> dict[str, Json]:
    by_status: dict[int, list[str]] = {}
    for code in sorted(_codes(one)):
        by_status.setdefault(PROBLEMS[code].status or 500, []).append(code)
    return {str(status): _problem(status, codes) for status, codes in sorted(by_status.items())}


def _codes(one: Operation) -> set[str]:
    if one.is_public:
        return {*_OF_EVERY_CONNECTION, *one.handler.opt.get("problems", ())}
    places = {parameter["in"] for parameter in one.entry["parameters"]}
    codes = {*_OF_EVERY_CONNECTION, *_OF_EVERY_KEY, *one.handler.opt.get("problems", ())}
    if "path" in places:
        codes.add("not_found")
    if "query" in places or "header" in places:
        codes.add("validation_failed")
    if _body_of(one) is not None:
        codes.update(_OF_BODIES)
    if one.method == "post":
        codes.update(_OF_IDEMPOTENCY_KEYS)
    return codes


def _problem(status: int, codes: list[str]) -> Json:
    """One response whose schema closes `code`, with an example of each."""
    schema = {"allOf": [{"$ref": _REF.format(name="ProblemDetails")}, {"properties": {"code": {"enum": codes}}}]}
    examples = {code: {"summary": PROBLEMS[code].title, "value": _example_of(code)} for code in codes}
    return {
        "description": "; ".join(f"`{code}`: {PROBLEMS[code].title}" for code in codes),
        "headers": _header_refs(["X-Request-ID", *_HEADERS_OF_PROBLEM.get(status, ())]),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
    }


def _example_of(code: str) -> Json:
    problem = PROBLEMS[code]
    return {
        "type": f"/api/docs#{code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.advice,
        "code": code,
        "request_id": "0198b3a2-6f00-7000-8000-000000000000",
        "errors": [],
    }


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _refuse_control_characters(schema: Any) -> None:
    """Every free string of a request body says what it may hold."""
    if isinstance(schema, list | tuple):
        for item in schema:
            _refuse_control_characters(item)
    elif isinstance(schema, dict):
        if schema.get("type") == "string" and not {"pattern", "format", "enum", "const"} & schema.keys():
            schema["pattern"] = _TEXT
        for item in schema.values():
            _refuse_control_characters(item)
