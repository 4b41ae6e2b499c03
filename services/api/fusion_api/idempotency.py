"""Idempotency-Key on every POST: what a request makes, it makes once, however often it is sent.

POST /jobs has a permanent key of its own in the body. Here the database keeps the hash of the request and the id of
what it made, for two days; neither secrets nor signed URLs.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from uuid import UUID

from fusion_core.db.pool import Connection, Pool, queries
from fusion_http.problem_details import FieldError, ProblemError
from fusion_http.request_context import add_header
from litestar import Request
from litestar.di import NamedDependency
from litestar.params import HeaderParameter

from fusion_api.auth import Caller
from fusion_api.services import Services

Create = Callable[[Connection], Awaitable[UUID | None]]
IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="a string of your choice: sending the request again with it makes nothing twice",
    ),
]


class Once:
    """One request, and the key under which it may be repeated."""

    def __init__(self, request: Request[Any, Any, Any], pool: Pool, account_id: UUID, key: str | None, body: bytes):
        self._request, self._pool, self._key = request, pool, key
        self._name = {
            "account_id": account_id,
            "operation": f"{request.method} {request.url.path}",
            "key": key,
        }
        self._sha256 = hashlib.sha256(body).digest()
        self.replayed = False

    @property
    def key(self) -> str | None:
        return self._key

    async def find(self) -> UUID | None:
        """What this key made before, for requests whose checks no longer hold once they have been answered.

        Raises ProblemError idempotency_conflict.
        """
        if self._key is None:
            return None
        async with self._pool.acquire() as connection:
            return await self._made_before(connection)

    async def make(self, create: Create) -> UUID | None:
        """Run `create` in a transaction, or answer what it made for this key before.

        Two requests at once: the second waits for the first. Raises ProblemError idempotency_conflict when the key
        belongs to a request with another body, and whatever `create` raises, which leaves the key unused.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            if self._key is None:
                return await create(connection)
            if await queries.take_idempotency_key(connection, **self._name, request_sha256=self._sha256) is None:
                return await self._made_before(connection)
            made = await create(connection)
            await queries.keep_idempotent_resource(connection, **self._name, resource_id=made)
            return made

    async def _made_before(self, connection: Connection) -> UUID | None:
        row = await queries.get_idempotency_key(connection, **self._name)
        if row is None:
            return None
        if row["request_sha256"] != self._sha256:
            detail = "this Idempotency-Key was used with another body"
            raise ProblemError("idempotency_conflict", detail, [FieldError("Idempotency-Key", detail)])
        self.replayed = True
        add_header(self._request.scope, "Idempotent-Replayed", "true")
        made: UUID | None = row["resource_id"]
        return made

    async def allow(self) -> None:
        """For a request that makes nothing new, or is harmless when repeated: only another body is refused."""

        async def nothing(_: Connection) -> None:
            return None

        await self.make(nothing)


async def provide_once(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    caller: NamedDependency[Caller],
    idempotency_key: IdempotencyKey = None,
) -> Once:
    return Once(request, services.pool, caller.account_id, idempotency_key, await request.body())
