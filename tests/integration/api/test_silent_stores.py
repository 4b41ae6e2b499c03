"""A Postgres that takes connections and never answers: 503 within the deadline, and service again once it is healed."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from fusion_core.storage import Storage
from fusion_http.answer_deadline import AnswerDeadline
from fusion_http.request_context import Answered, RequestContext

from tests.faults.proxy import PASS, Fault, Kind, Proxy

from .api_process import Server, serving
from .conftest import Customer

PATIENCE_S = 20  # of the client: several deadlines, and less than a statement's own limit
SILENT = Fault(Kind.HALF_OPEN)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


@pytest.fixture
def server(storage: Storage, service_environment: dict[str, str], proxy: Proxy, tmp_path: Path) -> Iterator[Server]:
    parts = urlsplit(service_environment["FUSION_DATABASE_URL"])
    assert parts.port is not None
    login = parts.netloc.rsplit(":", 1)[0]
    through = urlunsplit(parts._replace(netloc=f"{login}:{proxy.link('postgres', parts.port)}"))
    environment = service_environment | {"FUSION_DATABASE_URL": through, "FUSION_ANSWER_DEADLINE_S": "2"}
    with serving(environment | {"FUSION_LOG_FORMAT": "json"}, tmp_path / "api.log") as server:
        yield server


def check_not_ready(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready"), answer.text
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_every_request_is_answered_within_the_deadline_and_served_once_it_is_healed(
    server: Server, proxy: Proxy, customer: Customer
) -> None:
    headers = {"Authorization": f"Bearer {customer.secret}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=PATIENCE_S) as http:
        for _ in range(3):
            assert (await http.get("/api/jobs")).status_code == 200
        proxy.set("postgres", SILENT)
        asked = [
            http.get("/api/jobs"),  # over a connection that fell silent
            http.get("/api/account"),  # over one that is silent from its beginning
            http.post("/api/keys", json={"name": "new", "scopes": ["read"]}, headers={"Idempotency-Key": "one"}),
            http.get("/ready"),
            http.get("/ready/postgres"),
        ]
        for answer in await asyncio.gather(*asked):
            check_not_ready(answer)
        assert (await http.get("/health")).status_code == 200
        proxy.set("postgres", PASS)
        async with asyncio.timeout(60):
            while (await http.get("/api/jobs")).status_code != 200:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        logged = [line for line in server.lines() if line["event"] == "request" and line["path"] == "/api/keys"]
        assert [(line["status"], line["problem"]) for line in logged] == [(503, "not_ready")]


async def test_a_commit_that_is_never_answered_is_not_ready_either(
    server: Server, proxy: Proxy, customer: Customer
) -> None:
    """From one piece to the next of a request the connection falls silent, wherever that is."""
    headers = {"Authorization": f"Bearer {customer.secret}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=PATIENCE_S) as http:
        assert (await http.get("/api/keys")).status_code == 200
        for wait_s in (0.15, 0.35, 0.55, 0.75):
            proxy.set("postgres", Fault(Kind.DELAY, delay_s=0.05))  # each round trip takes 100 ms
            making = asyncio.create_task(http.post("/api/keys", json={"name": "new", "scopes": ["read"]}))
            await asyncio.sleep(wait_s)
            proxy.set("postgres", SILENT)
            answer = await making
            if answer.status_code != 201:
                check_not_ready(answer)
            proxy.set("postgres", PASS)


class Stubborn:
    """An ASGI app that takes its body, and whose unwinding waits for `release`."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body", False):
            pass
        try:
            await asyncio.Event().wait()
        finally:
            await self.release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            self.ended.set()


SCOPE: dict[str, Any] = {
    "type": "http", "scheme": "http", "method": "POST", "path": "/api/jobs", "headers": [], "query_string": b"",
}  # fmt: skip


async def test_the_answer_does_not_wait_for_the_work_to_unwind() -> None:
    app, sent, answered = Stubborn(), asyncio.Queue[Any](), list[Answered]()

    async def body() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    context = RequestContext(AnswerDeadline(app, 0.05), watch=answered.append)  # type: ignore[arg-type]
    serving = asyncio.create_task(context(SCOPE.copy(), body, sent.put))  # type: ignore[arg-type]
    async with asyncio.timeout(PATIENCE_S):
        assert (await sent.get())["status"] == 503
        assert json.loads((await sent.get())["body"])["code"] == "not_ready"
        assert not serving.done()
        app.release.set()
        await serving
    assert sent.empty(), "what the work says too late is dropped"
    assert app.ended.is_set()
    assert [(one.status, one.problem) for one in answered] == [(503, "not_ready")]


async def test_a_client_that_is_slow_with_its_body_costs_nothing_of_the_deadline() -> None:
    sent = asyncio.Queue[Any]()
    pieces = iter([True, True, True, False])

    async def slowly() -> dict[str, Any]:
        await asyncio.sleep(0.1)
        return {"type": "http.request", "body": b"x", "more_body": next(pieces)}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body", False):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    await AnswerDeadline(app, 0.3)(SCOPE.copy(), slowly, sent.put)  # type: ignore[arg-type]
    assert (await sent.get())["status"] == 200


async def test_whoever_cancels_a_request_from_outside_is_heard() -> None:
    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def unheard(_: Any) -> None:
        raise AssertionError("nothing is sent")

    for app in (Stubborn(), never_answers):
        serving = asyncio.create_task(AnswerDeadline(app, 60)(SCOPE.copy(), never, unheard))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


async def never_answers(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()
