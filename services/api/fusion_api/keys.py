"""API keys: the secret is shown once and kept only as a hash; revoking is effective at once."""

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fusion_core.api_keys import new_secret, secret_sha256, visible_prefix
from fusion_core.db.pool import Connection, queries
from fusion_http.paging import After, Limit, page
from fusion_http.problem_details import FieldError, ProblemError, not_found
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from fusion_api.auth import Caller, needs
from fusion_api.examples import CREATED_KEY, KEYS
from fusion_api.idempotency import Once
from fusion_api.services import Services
from fusion_api.times import Time, check_expiry, shown, shown_or_none

MAX_LIVE_KEYS = 100  # each may send its own number of requests a minute
Scope = Literal["train", "read", "datasets", "models", "billing"]


class CreateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=5)]
    expires_at: Time | None = None


class CreatedKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """`secret` is shown once: repeating the request with its Idempotency-Key answers null in its place."""

    id: UUID
    prefix: str
    scopes: list[str]
    secret: str | None
    expires_at: Time | None = None


class Key(msgspec.Struct, frozen=True, omit_defaults=True):
    id: UUID
    name: str
    prefix: str
    scopes: list[str]
    last_used_at: Time | None
    revoked: bool
    created_at: Time
    expires_at: Time | None = None


def _key(row: Any) -> Key:
    return Key(
        id=row["id"],
        name=row["name"],
        prefix=row["prefix"],
        scopes=row["scopes"],
        last_used_at=shown_or_none(row["last_used_at"]),
        revoked=row["revoked_at"] is not None,
        created_at=shown(row["created_at"]),
        expires_at=shown_or_none(row["expires_at"]),
    )


@get("/keys", guards=[needs("read")], summary="List API keys", answer=KEYS)
async def list_keys(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    limit: Limit = 50,
    after: After = None,
) -> Response[list[Key]]:
    rows = queries.list_api_keys(services.pool, account_id=caller.account_id, limit=limit, after=after)
    return page(request, [_key(row) async for row in rows], limit)


@post(
    "/keys",
    guards=[needs("train")],
    status_code=201,
    summary="Create an API key",
    answer=CREATED_KEY,
    problems=("too_many_keys",),
    example={"name": "ci", "scopes": ["train", "read"]},
)
async def create_key(
    data: JSONBody[CreateKey],
    once: NamedDependency[Once],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
) -> CreatedKey:
    """A key can hand on only scopes it has itself."""
    excess = sorted(set(data.scopes) - caller.scopes)
    if excess:
        errors = [FieldError("/scopes", f"this key has not itself: {', '.join(excess)}")]
        raise ProblemError("forbidden_scope", "a key cannot create a stronger one", errors)
    check_expiry(data.expires_at, "a key that should not work need not be made")
    secret = new_secret()

    async def insert(connection: Connection) -> UUID:
        await queries.lock_account(connection, account_id=caller.account_id)
        if await queries.count_live_api_keys(connection, account_id=caller.account_id) >= MAX_LIVE_KEYS:
            raise ProblemError("too_many_keys", f"{MAX_LIVE_KEYS} are allowed")
        row = await queries.insert_api_key(
            connection,
            account_id=caller.account_id,
            name=data.name,
            prefix=visible_prefix(secret),
            secret_sha256=secret_sha256(secret),
            scopes=sorted(set(data.scopes)),
            expires_at=data.expires_at,
        )
        key_id: UUID = row["id"]
        return key_id

    key_id = await once.make(insert)
    row = await queries.get_api_key(services.pool, account_id=caller.account_id, key_id=key_id)
    shown_secret = None if once.replayed else secret
    return CreatedKey(row["id"], row["prefix"], row["scopes"], shown_secret, shown_or_none(row["expires_at"]))


@delete("/keys/{key_id:uuid}", guards=[needs("train")], status_code=204, summary="Revoke an API key")
async def revoke_key(
    key_id: FromPath[UUID], services: NamedDependency[Services], caller: NamedDependency[Caller]
) -> None:
    if await queries.revoke_api_key(services.pool, account_id=caller.account_id, key_id=key_id) is None:
        raise not_found("API key")
