"""HTTP to the API: time-outs, retries, errors as exceptions, answers as typed values."""

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import msgspec

from fusion_client.errors import (
    ApiError,
    ConfigurationError,
    ConnectionFailedError,
    InvalidIdError,
    UnexpectedAnswerError,
)
from fusion_client.errors import api_error_type as error_type

T = TypeVar("T")
_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_LONGEST_RETRY_AFTER_S = 60.0
TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class Retries(msgspec.Struct, frozen=True):
    """How often and how patiently a request that is safe to repeat is repeated."""

    attempts: int = 6
    first_wait_s: float = 0.25
    longest_wait_s: float = 8.0

    def wait_s(self, attempt: int) -> float:
        """The pause after attempt number `attempt` (from 1): doubling, with jitter."""
        full: float = min(self.longest_wait_s, self.first_wait_s * 2 ** min(attempt - 1, 16))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients, hides nothing


class _Problem(msgspec.Struct):
    """The members of application/problem+json that are used."""

    detail: str = ""
    code: str = ""
    errors: tuple[dict[str, Any], ...] = ()


class Transport:
    """One connection pool to one API with one key."""

    def __init__(self, url: str, api_key: str, retries: Retries) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"the API's address {url!r} does not begin with http:// or https://")
        if not api_key or not api_key.isascii() or not api_key.isprintable():
            raise ConfigurationError("the API key is empty or not printable ASCII; create one and set FUSION_API_KEY")
        self.retries = retries
        self.http = httpx.Client(
            base_url=url.rstrip("/").removesuffix("/api"),
            headers={"Authorization": f"Bearer {api_key}", "User-Agent": "fusion-client"},
            timeout=TIMEOUT,
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        """Send, repeat what is safe to repeat, and answer a 2xx. Raises ConnectionFailedError or ApiError.

        Safe are GET, DELETE, and a POST that carries an idempotency key.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        content = None if body is None else msgspec.json.encode(body)
        if content is not None:
            headers["Content-Type"] = "application/json"
        request = self.http.build_request(method, path, content=content, params=params, headers=headers)
        attempts = self.retries.attempts if method in ("GET", "DELETE") or idempotency_key else 1
        for attempt in range(1, attempts + 1):
            wait_s = self.retries.wait_s(attempt)
            try:
                response = self.http.send(request)
            except httpx.TransportError as error:
                if attempt == attempts:
                    raise connection_failed(request, error) from error
            else:
                if response.is_success or (method == "DELETE" and attempt > 1 and response.status_code == 404):
                    return response  # the latter: gone by an attempt whose answer was lost
                asked_s = retry_after_s(response)
                if not is_retryable(response) or attempt == attempts or asked_s > _LONGEST_RETRY_AFTER_S:
                    raise api_error(response)
                wait_s = max(wait_s, asked_s)
            time.sleep(wait_s)
        raise AssertionError("the last attempt answers or raises")

    def get(self, path: str, answer: type[T], params: Mapping[str, Any] | None = None) -> T:
        return decode(self.request("GET", path, params=params), answer)

    def post(self, path: str, answer: type[T], body: object, idempotency_key: str | None = None) -> T:
        return decode(self.request("POST", path, body=body, idempotency_key=idempotency_key), answer)

    def patch(self, path: str, answer: type[T], body: object) -> T:
        return decode(self.request("PATCH", path, body=body), answer)

    def get_pages(self, path: str, item: type[T], limit: int, filters: Mapping[str, Any] | None = None) -> list[T]:
        """Up to `limit` items of a list, following its pages, which keep the filters."""
        items: list[T] = []
        params: Any = {**(filters or {}), "limit": min(limit, 100)}
        while len(items) < limit:
            response = self.request("GET", path, params=params)
            items += decode(response, list[item])  # type: ignore[valid-type]  # a type made at run time
            following = response.links.get("next", {}).get("url")
            if following is None:
                break
            params = httpx.URL(following).params  # the query alone: the key goes to no other host or path
        return items[:limit]


def decode(response: httpx.Response, answer: type[T]) -> T:
    """The body as a typed value. Raises UnexpectedAnswerError."""
    try:
        return msgspec.json.decode(response.content, type=answer)
    except msgspec.DecodeError as error:
        message = f"{response.request.method} {response.request.url.path} answered another shape: {error}"
        raise UnexpectedAnswerError(message) from error


def is_retryable(response: httpx.Response) -> bool:
    return response.status_code in _RETRIED_STATUSES


def retry_after_s(response: httpx.Response) -> float:
    """Seconds that Retry-After asks for, given as a number or a date; 0 without one."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for a year of twenty digits
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def api_error(response: httpx.Response) -> ApiError:
    """The exception for an answer that is not 2xx; its body must have been read."""
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem()
    return error_type(response.status_code)(
        response.status_code,
        problem.code or "unknown",
        problem.detail or response.reason_phrase or f"HTTP {response.status_code}",
        problem.errors,
        response.headers.get("x-request-id", ""),
    )


def connection_failed(request: httpx.Request, error: httpx.TransportError) -> ConnectionFailedError:
    where = f"{request.url.scheme}://{request.url.netloc.decode()}"
    reason = str(error) or type(error).__name__
    return ConnectionFailedError(f"no answer from {where} ({reason}); is FUSION_API_URL right and the API up?")


def new_key() -> str:
    """An idempotency key of its own."""
    return f"fusion-client-{uuid4()}"


def segment(value: str) -> str:
    """An id as one path segment. Raises InvalidIdError."""
    if not value or not all(character.isalnum() or character in "-_" for character in value):
        raise InvalidIdError(f"{value!r} is not an id")
    return value
