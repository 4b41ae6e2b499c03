"""Operator tokens as they are created, listed and revoked. Requests read the row: each effect is at once."""

from typing import Any
from uuid import UUID

import msgspec
from fusion_core.api_keys import secret_sha256, visible_prefix
from fusion_core.db.pool import Connection, queries
from fusion_core.operator_tokens import ROLES, new_secret

MAX_LISTED = 1000


class OperatorError(ValueError):
    """The token cannot be created or revoked as asked."""


class NewToken(msgspec.Struct, frozen=True):
    """`secret` exists only here: the database keeps its SHA-256."""

    id: UUID
    name: str
    role: str
    secret: str

    def __repr__(self) -> str:
        return f"NewToken({self.id})"


async def create_token(conn: Connection, name: str, role: str) -> NewToken:
    """Raises OperatorError for an unknown role, a bad name, and a name that a live token has."""
    if role not in ROLES:
        raise OperatorError(f"unknown role {role!r}; the roles are {', '.join(ROLES)}")
    if not 1 <= len(name.strip()) <= 200:
        raise OperatorError("a token's name has 1 to 200 characters")
    secret = new_secret()
    row = await queries.insert_operator_token(
        conn, name=name.strip(), role=role, prefix=visible_prefix(secret), secret_sha256=secret_sha256(secret)
    )
    if row is None:
        raise OperatorError(f"a live token is called {name.strip()!r}; revoke it first, or choose another name")
    return NewToken(row["id"], row["name"], row["role"], secret)


async def list_tokens(conn: Connection) -> list[Any]:
    """The newest first, revoked ones too."""
    return [row async for row in queries.list_operator_tokens(conn, limit=MAX_LISTED)]


async def revoke_token(conn: Connection, token_id: UUID) -> Any:
    """The row; repeating is harmless. Raises OperatorError."""
    row = await queries.revoke_operator_token(conn, token_id=token_id)
    if row is None:
        raise OperatorError(f"there is no operator token {token_id}; `fusion-admin operators list` shows them")
    return row
