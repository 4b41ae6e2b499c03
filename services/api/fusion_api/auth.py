"""API keys and scopes: a guard on every operation; revocation is effective at once, as every request reads the row."""

import hmac
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import structlog
from fusion_core.api_keys import SECRET_PREFIX, secret_sha256
from fusion_core.db.pool import queries
from fusion_http.problem_details import ProblemError
from fusion_http.request_context import add_header
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from fusion_api.services import Services

MAX_KEY_LENGTH = 128
TOUCH_EVERY = timedelta(minutes=1)  # last_used_at is no more exact, which spares most requests a write


class Caller(msgspec.Struct, frozen=True):
    """Who makes this request."""

    account_id: UUID
    key_id: UUID
    scopes: frozenset[str]


class needs:  # noqa: N801 (reads as a word where routes are declared)
    """A guard that asks for a valid key with one of these scopes."""

    def __init__(self, *scopes: str) -> None:
        self.scopes = scopes

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        caller = await _authenticate(connection)
        services: Services = connection.app.state.services
        for name, value in (await services.limiter.hit(caller.key_id)).items():
            add_header(connection.scope, name, value)
        if not caller.scopes.intersection(self.scopes):
            raise ProblemError("forbidden_scope", f"this needs the scope {' or '.join(self.scopes)}")
        connection.scope["auth"] = caller


async def provide_caller(request: Request[Any, Any, Any]) -> Caller:
    caller: Caller = request.scope["auth"]
    return caller


async def is_live(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """Is the key of a long answer still good?"""
    try:
        await _authenticate(connection)
    except ProblemError:
        return False
    return True


async def _authenticate(connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
    scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.startswith(SECRET_PREFIX) or len(secret) > MAX_KEY_LENGTH:
        raise ProblemError("unauthorized", "the request has no API key")
    services: Services = connection.app.state.services
    digest = secret_sha256(secret)
    row = await queries.api_key_by_hash(services.pool, secret_sha256=digest)
    if row is None or not hmac.compare_digest(row["secret_sha256"], digest):
        raise ProblemError("unauthorized", "the API key is unknown or revoked")
    if row["last_used_at"] is None or datetime.now(UTC) - row["last_used_at"] > TOUCH_EVERY:
        await queries.touch_api_key(services.pool, key_id=row["id"])
    structlog.contextvars.bind_contextvars(account_id=str(row["account_id"]))
    return Caller(row["account_id"], row["id"], frozenset(row["scopes"]))
