"""Every operation, those to come too, with every kind of token; and tokens as the command makes them."""

import re
from uuid import uuid4

import httpx
import pytest
from fusion_core.api_keys import secret_sha256
from fusion_core.db.audit import By
from fusion_core.db.pool import queries
from fusion_orchestrator import operators
from fusion_orchestrator.admin.auth import operator, viewer
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from tests.integration.db.conftest import World

from .conftest import check_problem, new_token

BY = By("cli:test", "a test")
ID = "0198b3a2-6f00-7000-8000-00000000ffff"
Route = tuple[str, str, HTTPRouteHandler]


def routes(app: Litestar) -> list[Route]:
    """Method, path with values in it, and handler of every route of the application, the document's too."""
    return [
        (method, re.sub(r"\{\w+:(\w+)\}", lambda found: ID if found[1] == "uuid" else "name", route.path), handler)
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        for method in sorted(handler.http_methods - {"HEAD", "OPTIONS"})
    ]


def guards(handler: HTTPRouteHandler) -> list[object]:
    return list(handler.resolve_guards())


async def test_every_route_below_admin_has_one_guard_and_what_changes_things_is_an_operators(app: Litestar) -> None:
    found = routes(app)
    assert len(found) > 1
    for method, path, handler in found:
        assert path.startswith("/admin/") or path == "/admin", path
        assert guards(handler) == [viewer if method == "GET" else operator], f"{method} {path}"


async def test_nobody_gets_in_without_a_live_token_of_the_role(
    app: Litestar, http: httpx.AsyncClient, world: World
) -> None:
    looks, acts, gone = [await new_token(world.pool, role, role) for role in ("viewer", "operator")] + [
        await new_token(world.pool, "gone", "operator")
    ]
    async with world.pool.acquire() as conn:
        await operators.revoke_token(conn, BY, gone.id)
    strangers = ["", "Bearer", f"Basic {acts.secret}", f"Bearer {gone.secret}", f"Bearer fusion_ops_{'x' * 43}",
                 f"Bearer fusion_live_{'x' * 43}", f"Bearer fusion_ops_{'x' * 5000}"]  # fmt: skip
    for method, path, _ in routes(app):
        for header in strangers:
            answer = await http.request(method, path, headers={"Authorization": header} if header else {})
            check_problem(answer, "operator_unauthorized")
        as_viewer = await http.request(method, path, headers={"Authorization": f"Bearer {looks.secret}"})
        if method == "GET":
            assert as_viewer.status_code in (200, 404), path
        else:
            check_problem(as_viewer, "forbidden_role")
        as_operator = await http.request(method, path, headers={"Authorization": f"Bearer {acts.secret}"}, json={})
        assert as_operator.status_code not in (401, 403, 500), path


async def test_a_revoked_token_is_refused_by_the_very_next_request(http: httpx.AsyncClient, world: World) -> None:
    token = await new_token(world.pool, "bob", "viewer")
    headers = {"Authorization": f"Bearer {token.secret}"}
    assert (await http.get("/admin/audit", headers=headers)).status_code == 200
    async with world.pool.acquire() as conn:
        await operators.revoke_token(conn, BY, token.id)
        await operators.revoke_token(conn, BY, token.id)
    check_problem(await http.get("/admin/audit", headers=headers), "operator_unauthorized")


async def test_a_token_is_kept_as_its_hash_and_its_name_is_one_persons(world: World) -> None:
    token = await new_token(world.pool, "bob", "viewer")
    row = await queries.operator_token_by_hash(world.pool, secret_sha256=secret_sha256(token.secret))
    assert (row["name"], row["role"], row["revoked_at"]) == ("bob", "viewer", None)
    assert token.secret.startswith(row["prefix"])
    assert len(token.secret) > len(row["prefix"]) + 20
    assert token.secret not in repr(token) + repr(dict(row))
    with pytest.raises(operators.OperatorError, match="revoke it first"):
        await new_token(world.pool, "bob", "operator")
    async with world.pool.acquire() as conn:
        await operators.revoke_token(conn, BY, token.id)
        assert [one["id"] for one in await operators.list_tokens(conn)] == [token.id]
        with pytest.raises(operators.OperatorError, match="no operator token"):
            await operators.revoke_token(conn, BY, uuid4())
    assert (await new_token(world.pool, "bob", "operator")).role == "operator"
    with pytest.raises(operators.OperatorError, match="viewer, operator"):
        await new_token(world.pool, "eve", "root")
    with pytest.raises(operators.OperatorError, match="1 to 200"):
        await new_token(world.pool, " ", "viewer")
