"""Accounts and API keys as an operator creates them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import msgspec
from fusion_core.api_keys import SCOPES, new_secret, secret_sha256, visible_prefix
from fusion_core.db.pool import Connection, connect, queries


class AccountError(ValueError):
    """The account or key cannot be created as asked."""


class NewKey(msgspec.Struct, frozen=True):
    """`secret` exists only here: the database keeps its SHA-256."""

    id: UUID
    scopes: tuple[str, ...]
    secret: str

    def __repr__(self) -> str:
        return f"NewKey({self.id})"


@asynccontextmanager
async def _connected(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, application_name="fusion-admin")
    try:
        yield connection
    finally:
        await connection.close()


async def create_account(database_url: str, name: str) -> UUID:
    """Raises AccountError for a name that is empty or longer than 200 characters."""
    if not 1 <= len(name.strip()) <= 200:
        raise AccountError("an account's name has 1 to 200 characters")
    async with _connected(database_url) as connection:
        row = await queries.insert_account(connection, name=name.strip())
    account_id: UUID = row["id"]
    return account_id


async def create_key(database_url: str, account_id: UUID, name: str, scopes: list[str]) -> NewKey:
    """Raises AccountError for an unknown account, an unknown scope, or a name of a wrong length."""
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise AccountError(f"unknown scopes {', '.join(unknown)}; the scopes are {', '.join(SCOPES)}")
    if not scopes or not 1 <= len(name) <= 200:
        raise AccountError("a key needs at least one scope and a name of 1 to 200 characters")
    secret = new_secret()
    async with _connected(database_url) as connection:
        if await queries.get_account(connection, account_id=account_id) is None:
            raise AccountError(f"there is no account {account_id}; create one with `fusion-admin accounts create`")
        row = await queries.insert_api_key(
            connection,
            account_id=account_id,
            name=name,
            prefix=visible_prefix(secret),
            secret_sha256=secret_sha256(secret),
            scopes=sorted(set(scopes)),
            expires_at=None,
        )
    return NewKey(row["id"], tuple(row["scopes"]), secret)
