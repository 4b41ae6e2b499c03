"""Around every request, routed or not: its id, its log line."""

import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple
from uuid import uuid4

import structlog
from fusion_core import tracing
from fusion_core.tracing import Span
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from fusion_http.problem_details import send_not_ready
from fusion_http.slow_clients import read_within

log = structlog.get_logger()
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MOST_AT_ONCE = 2000  # in one process
_PROBES = ("/health", "/ready", "/metrics", "/demand/")  # asked every few seconds: of interest only when refused
_ACCEPTABLE = re.compile(r"[A-Za-z0-9._-]{8,128}")


_HEADERS = "fusion.headers"


def add_header(scope: Any, name: str, value: str) -> None:
    """Send a header with the answer to this request, whatever the answer will be."""
    scope.setdefault(_HEADERS, []).append((name.lower().encode(), value.encode()))


class Answered(NamedTuple):
    """What became of a request: `route` is the template of its path, `seconds` is the time to the answer's head.

    Fit for labels: a method or a path that we do not know is `other` or `unmatched`.
    """

    method: str
    route: str
    status: int
    seconds: float
    problem: str | None


class RequestContext:
    """ASGI: takes or mints x-request-id, answers it, binds it to the logs, and logs one line a request.

    A body that does not come within `body_deadline_s` is a problem that has an id, too, and so is a request beyond
    `most_at_once`, of which streams are a part.
    """

    def __init__(
        self,
        app: ASGIApp,
        body_deadline_s: float = 20.0,
        most_at_once: int = MOST_AT_ONCE,
        watch: Callable[[Answered], None] = lambda _: None,
    ) -> None:
        """`watch` is told of each request once it is over."""
        self._app = app
        self._body_deadline_s = body_deadline_s
        self._most_at_once = most_at_once
        self._watch = watch
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        parent = _header(scope, b"traceparent")
        probe = scope["path"].startswith(_PROBES)
        with nullcontext(Span()) if probe else tracing.span("request", parent=parent, kind="server") as span:
            await self._answer(scope, receive, send, span, quiet=probe)

    async def _answer(self, scope: HTTPScope, receive: Receive, send: Send, span: Span, *, quiet: bool) -> None:
        """`quiet`: no line in the log unless the answer is none, or an error."""
        request_id = _request_id(scope)
        started = time.monotonic()
        status, seconds = 0, 0.0

        async def send_with_id(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.monotonic() - started
                headers: Any = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                headers += scope.get(_HEADERS, [])
                if span.traceparent is not None:
                    headers.append((b"traceparent", span.traceparent.encode()))
                headers += _security_headers(scope, message)
                message["headers"] = headers
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        self._open += 1
        try:
            if self._open > self._most_at_once:
                await send_not_ready(send_with_id, "too many requests are open")  # before anything is spent on it
            else:
                await self._app(scope, read_within(receive, self._body_deadline_s), send_with_id)
        finally:
            self._open -= 1
            milliseconds = round((time.monotonic() - started) * 1000, 1)
            if not quiet or not 200 <= status < 300:
                log.info("request", method=scope["method"], path=scope["path"], status=status, ms=milliseconds)
            if status:  # else the client left before there was an answer
                problem = structlog.contextvars.get_contextvars().get("problem")
                route = scope.get("path_template") or "unmatched"
                method = scope["method"] if scope["method"] in _METHODS else "other"
                answered = Answered(method, route, status, seconds, problem)
                self._watch(answered)
                _describe_span(span, answered, request_id)


def _security_headers(scope: HTTPScope, start: Any) -> list[tuple[bytes, bytes]]:
    """What every answer tells a browser. No answer allows another origin (CORS): keys do not belong into browsers."""
    is_page = any(name.lower() == b"content-type" and b"text/html" in value for name, value in start.get("headers", []))
    policy = b"frame-ancestors 'none'" if is_page else b"default-src 'none'; frame-ancestors 'none'"
    headers = [
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),  # answers hold secrets and signed URLs
        (b"content-security-policy", policy),
        (b"referrer-policy", b"no-referrer"),
    ]
    if scope["scheme"] == "https":  # RFC 6797: never over plain HTTP
        headers.append((b"strict-transport-security", b"max-age=31536000; includeSubDomains"))
    return headers


def _describe_span(span: Span, answered: Answered, request_id: str) -> None:
    """By the semantic conventions of OpenTelemetry for HTTP servers, 1.23."""
    span.rename(f"{answered.method} {answered.route}")
    span.set(
        {
            "http.request.method": answered.method,
            "http.route": answered.route,
            "http.response.status_code": answered.status,
            "fusion.request_id": request_id,
        }
    )
    if answered.status >= 500:
        span.fail(answered.problem or "")


def _header(scope: Scope, wanted: bytes) -> str | None:
    """The first header of this name (in lower case) that is ASCII."""
    return next((value.decode() for name, value in scope["headers"] if name == wanted and value.isascii()), None)


def _request_id(scope: Scope) -> str:
    given = _header(scope, b"x-request-id") or ""
    return given if _ACCEPTABLE.fullmatch(given) else uuid4().hex
