"""Requests of one key are counted by all replicas together; without Valkey by each for itself."""

import re
from typing import Any
from uuid import uuid4

import pytest
from fusion_api.rate_limit import RateLimiter
from fusion_http.problem_details import ProblemError


async def until_limited(*limiters: RateLimiter) -> int:
    """How many requests in turns are let through before the first refusal."""
    key_id, count = uuid4(), 0
    while count < 100:
        try:
            headers = await limiters[count % len(limiters)].hit(key_id)
        except ProblemError as error:
            assert error.problem.code == "rate_limited"
            assert error.headers is not None
            assert 1 <= int(error.headers["Retry-After"]) <= 120
            return count
        count += 1
        assert int(headers["RateLimit-Remaining"]) >= 0
    return count


async def test_two_replicas_share_one_count(redis_url: str) -> None:
    replicas = RateLimiter(redis_url, 10), RateLimiter(redis_url, 10)
    assert await until_limited(*replicas) == 10
    for replica in replicas:
        await replica.aclose()


async def test_without_valkey_each_replica_counts_for_itself() -> None:
    nowhere = "redis://127.0.0.1:1/0"
    assert await until_limited(RateLimiter(nowhere, 10), RateLimiter(nowhere, 10)) == 20
    assert await until_limited(RateLimiter(None, 10)) == 10


async def test_answers_carry_the_headers_and_429_says_when_to_come_again(
    customer: Any, http: Any, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await customer.send("GET", "/api/jobs")
    limit, left = int(answer.headers["RateLimit-Limit"]), int(answer.headers["RateLimit-Remaining"])
    assert 0 < left < limit
    application = http._transport.app._app
    strict = application.state.services._replace(limiter=RateLimiter(None, 1))
    monkeypatch.setitem(application.state, "services", strict)
    await customer.send("GET", "/api/jobs")
    refused = await customer.send("GET", "/api/jobs")
    problem(refused, "rate_limited")
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["RateLimit-Remaining"] == "0"


async def test_every_answer_to_a_key_says_what_is_left(customer: Any, http: Any) -> None:
    """Of every operation in the document, errors of its own and of its parameters and body included."""
    document = (await http.get("/api/openapi.json")).json()
    operations = [
        (method, path) for path, item in document["paths"].items() for method in item if method != "parameters"
    ]
    operations = [(method, path) for method, path in operations if path.startswith("/api/")]
    assert len(operations) > 40
    for method, path in operations:
        answer = await customer.send(method.upper(), re.sub(r"{\w+}", str(uuid4()), path), json={})
        assert answer.status_code < 500, (method, path, answer.text)
        limit, remaining = int(answer.headers["RateLimit-Limit"]), int(answer.headers["RateLimit-Remaining"])
        assert 0 < int(answer.headers["RateLimit-Reset"]) <= 120
        assert 0 < remaining < limit
