"""API keys: shown once, revoked at once, never stronger than their maker; a scope for every operation."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fusion_api.app import OPERATIONS
from fusion_api.keys import MAX_LIVE_KEYS
from fusion_core.db.pool import Pool

NewCustomer = Callable[..., Awaitable[Any]]
Problem = Callable[[httpx.Response, str], Any]


async def test_keys_are_shown_once_and_revoked_at_once(customer: Any, pool: Pool, problem: Problem) -> None:
    created = await customer.send("POST", "/api/keys", json={"name": "ci", "scopes": ["read"]})
    assert created.status_code == 201
    assert list(created.json()) == ["id", "prefix", "scopes", "secret"]
    secret = created.json()["secret"]
    assert secret.startswith("fusion_live_")
    keys = (await customer.send("GET", "/api/keys")).json()
    assert list(keys[0]) == ["id", "name", "prefix", "scopes", "last_used_at", "revoked", "created_at"]
    assert secret not in str(keys)
    stored = await pool.fetch("select api_keys::text as row from api_keys")
    assert all(secret not in row["row"] for row in stored)
    bearer = {"Authorization": f"Bearer {secret}"}
    assert (await customer.send("GET", "/api/jobs", headers=bearer)).status_code == 200
    assert (await customer.send("DELETE", f"/api/keys/{created.json()['id']}")).status_code == 204
    problem(await customer.send("GET", "/api/jobs", headers=bearer), "unauthorized")
    problem(await customer.send("DELETE", f"/api/keys/{uuid4()}"), "not_found")


async def test_a_key_cannot_make_a_stronger_one(new_customer: NewCustomer, problem: Problem) -> None:
    weak = await new_customer("train")
    asked = {"name": "strong", "scopes": ["models", "train"]}
    problem(await weak.send("POST", "/api/keys", json=asked), "forbidden_scope")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer fusion_live_unknown", "Basic abc", "Bearer " + "x" * 500])
async def test_no_key_no_answer(http: httpx.AsyncClient, header: str, problem: Problem) -> None:
    response = await http.get("/api/jobs", headers={"Authorization": header} if header else {})
    problem(response, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


def test_every_operation_asks_for_a_scope() -> None:
    assert all(operation.guards for operation in OPERATIONS)


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("train", {"POST /api/jobs", "GET /api/jobs"}),
        ("read", {"GET /api/jobs", "GET /api/models", "GET /api/datasets", "GET /api/keys"}),
        ("datasets", {"POST /api/uploads/presign", "POST /api/datasets", "GET /api/datasets"}),
        ("models", {"GET /api/models"}),
        ("billing", {"POST /api/pricing/estimate"}),
    ],
)
async def test_each_scope_opens_its_operations_only(new_customer: NewCustomer, scope: str, allowed: set[str]) -> None:
    customer = await new_customer(scope)
    every = {"POST /api/jobs", "GET /api/jobs", "GET /api/models", "GET /api/datasets", "POST /api/uploads/presign"}
    every |= {"POST /api/datasets", "GET /api/keys"}
    for operation in sorted(every | allowed):
        method, path = operation.split()
        status = (await customer.send(method, path, json={} if method == "POST" else None)).status_code
        assert (status != 403) == (operation in allowed), operation


async def test_another_accounts_key_cannot_be_seen_or_revoked(
    customer: Any, new_customer: NewCustomer, problem: Problem
) -> None:
    stranger = await new_customer()
    (mine,) = (await customer.send("GET", "/api/keys")).json()
    assert [key["id"] for key in (await stranger.send("GET", "/api/keys")).json()] != [mine["id"]]
    problem(await stranger.send("DELETE", f"/api/keys/{mine['id']}"), "not_found")
    assert (await customer.send("GET", "/api/keys")).json()[0]["revoked"] is False


async def test_last_use_is_written_at_most_once_a_minute(customer: Any, pool: Pool) -> None:
    await customer.send("GET", "/api/jobs")
    first = await pool.fetchval("select last_used_at from api_keys")
    assert first is not None
    await customer.send("GET", "/api/jobs")
    assert await pool.fetchval("select last_used_at from api_keys") == first
    await pool.execute("update api_keys set last_used_at = last_used_at - interval '2 minutes'")
    await customer.send("GET", "/api/jobs")
    assert await pool.fetchval("select last_used_at from api_keys") > first


async def test_a_key_that_has_expired_already_is_refused(customer: Any, problem: Problem) -> None:
    body = {"name": "ci", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}
    (error,) = problem(await customer.send("POST", "/api/keys", json=body), "validation_failed")["errors"]
    assert error["pointer"] == "/expires_at"


async def test_an_account_has_a_hundred_keys_that_work(customer: Any, problem: Problem) -> None:
    body = {"name": "ci", "scopes": ["read"]}
    answers = await asyncio.gather(*(customer.send("POST", "/api/keys", json=body) for _ in range(MAX_LIVE_KEYS + 4)))
    made = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    assert len(made) == MAX_LIVE_KEYS - 1, "the customer's own is one of them"
    problem(await customer.send("POST", "/api/keys", json=body), "too_many_keys")
    await customer.send("DELETE", f"/api/keys/{made[0]}")
    assert (await customer.send("POST", "/api/keys", json=body)).status_code == 201
