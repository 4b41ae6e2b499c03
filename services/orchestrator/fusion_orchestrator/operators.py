"""Operator tokens as they are created, listed and revoked. Requests read the row: each effect is at once."""

from typing import Any
from uuid import UUID

import msgspec
from fusion_core.api_keys import secret_sha256, visible_prefix
from fusion_core.db.audit import COMMAND_LINE, RULE, By, record
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


async def create_token(conn: Connection, by: By, name: str, role: str) -> NewToken:
    """Raises OperatorError for an unknown role, a bad name, and a name that a live token or another actor has."""
    if role not in ROLES:
        raise OperatorError(f"unknown role {role!r}; the roles are {', '.join(ROLES)}")
    name = name.strip()
    if not 1 <= len(name) <= 200:
        raise OperatorError("a token's name has 1 to 200 characters")
    if name.startswith((COMMAND_LINE, RULE)):
        raise OperatorError(f"a name that begins with {COMMAND_LINE} or {RULE} is another actor's in the audit log")
    secret = new_secret()
    prefix = visible_prefix(secret)
    async with conn.transaction():
        row = await queries.insert_operator_token(
            conn, name=name, role=role, prefix=prefix, secret_sha256=secret_sha256(secret)
        )
        if row is None:
            raise OperatorError(f"a live token is called {name!r}; revoke it first, or choose another name")
        made = {"name": name, "role": role, "prefix": prefix}
        await record(conn, by, "create_token", "operator_token", str(row["id"]), None, made)
    return NewToken(row["id"], row["name"], row["role"], secret)


async def list_tokens(conn: Connection) -> list[Any]:
    """The newest first, revoked ones too."""
    return [row async for row in queries.list_operator_tokens(conn, limit=MAX_LISTED)]


async def revoke_token(conn: Connection, by: By, token_id: UUID) -> Any:
    """The row; repeating is harmless. Raises OperatorError."""
    async with conn.transaction():
        before = await queries.lock_operator_token(conn, token_id=token_id)
        if before is None:
            raise OperatorError(f"there is no operator token {token_id}; `fusion-admin operators list` shows them")
        row = await queries.revoke_operator_token(conn, token_id=token_id)
        seen = ({field: one[field] for field in ("name", "role", "revoked_at")} for one in (before, row))
        await record(conn, by, "revoke_token", "operator_token", str(token_id), *seen)
    return row
