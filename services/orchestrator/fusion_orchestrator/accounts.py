"""Accounts and API keys as an operator creates them, each with its line in the audit log."""

from uuid import UUID

import msgspec
from fusion_core.api_keys import SCOPES, new_secret, secret_sha256, visible_prefix
from fusion_core.db.audit import By, record
from fusion_core.db.pool import Connection, queries


class AccountError(ValueError):
    """The account or key cannot be created as asked."""


class NewKey(msgspec.Struct, frozen=True):
    """`secret` exists only here: the database keeps its SHA-256."""

    id: UUID
    scopes: tuple[str, ...]
    secret: str

    def __repr__(self) -> str:
        return f"NewKey({self.id})"


async def create_account(conn: Connection, by: By, name: str) -> UUID:
    """Raises AccountError for a name that is empty or longer than 200 characters."""
    name = name.strip()
    if not 1 <= len(name) <= 200:
        raise AccountError("an account's name has 1 to 200 characters")
    async with conn.transaction():
        account_id: UUID = (await queries.insert_account(conn, name=name))["id"]
        await record(conn, by, "create_account", "account", str(account_id), None, {"name": name})
    return account_id


async def create_key(conn: Connection, by: By, account_id: UUID, name: str, scopes: list[str]) -> NewKey:
    """Raises AccountError for an unknown account, an unknown scope, or a name of a wrong length."""
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise AccountError(f"unknown scopes {', '.join(unknown)}; the scopes are {', '.join(SCOPES)}")
    if not scopes or not 1 <= len(name) <= 200:
        raise AccountError("a key needs at least one scope and a name of 1 to 200 characters")
    secret = new_secret()
    prefix = visible_prefix(secret)
    async with conn.transaction():
        if await queries.get_account(conn, account_id=account_id) is None:
            raise AccountError(f"there is no account {account_id}; create one with `fusion-admin accounts create`")
        row = await queries.insert_api_key(
            conn,
            account_id=account_id,
            name=name,
            prefix=prefix,
            secret_sha256=secret_sha256(secret),
            scopes=sorted(set(scopes)),
            expires_at=None,
        )
        made = {"account_id": account_id, "name": name, "prefix": prefix, "scopes": row["scopes"]}
        await record(conn, by, "create_key", "key", str(row["id"]), None, made)
    return NewKey(row["id"], tuple(row["scopes"]), secret)
