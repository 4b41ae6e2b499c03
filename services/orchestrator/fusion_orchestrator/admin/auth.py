"""Operator tokens as guards. Every request reads the token's row, so a revoked one is of no more use at once."""

import hmac
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import structlog
from fusion_core.api_keys import secret_sha256
from fusion_core.db.pool import queries
from fusion_core.operator_tokens import SECRET_PREFIX
from fusion_http.problem_details import ProblemError
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from fusion_orchestrator.service import Service

MAX_SECRET_LENGTH = 128
TOUCH_EVERY = timedelta(minutes=1)  # last_used_at is no more exact, which spares most requests a write

Connection = ASGIConnection[Any, Any, Any, Any]


class Caller(msgspec.Struct, frozen=True):
    """Who makes this request: the token's name goes into the audit log."""

    name: str
    role: str


async def viewer(connection: Connection, _: BaseRouteHandler) -> None:
    """A guard that asks for any live operator token."""
    connection.scope["auth"] = await _authenticate(connection)


async def operator(connection: Connection, _: BaseRouteHandler) -> None:
    """A guard that asks for a live token with the role operator."""
    caller = await _authenticate(connection)
    if caller.role != "operator":
        raise ProblemError("forbidden_role", "this needs the role operator")
    connection.scope["auth"] = caller


async def provide_caller(request: Request[Any, Any, Any]) -> Caller:
    caller: Caller = request.scope["auth"]
    return caller


async def _authenticate(connection: Connection) -> Caller:
    scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.startswith(SECRET_PREFIX) or len(secret) > MAX_SECRET_LENGTH:
        raise ProblemError("operator_unauthorized", "the request has no operator token")
    service: Service = connection.app.state.service
    digest = secret_sha256(secret)
    row = await queries.operator_token_by_hash(service.pool, secret_sha256=digest)
    if row is None or not hmac.compare_digest(row["secret_sha256"], digest):
        raise ProblemError("operator_unauthorized", "the operator token is unknown or revoked")
    if row["last_used_at"] is None or datetime.now(UTC) - row["last_used_at"] > TOUCH_EVERY:
        await queries.touch_operator_token(service.pool, token_id=row["id"])
    structlog.contextvars.bind_contextvars(operator=row["name"])
    return Caller(row["name"], row["role"])
