"""Clients over raw sockets that are slow, endless or idle: each is cut off in time, and others are served meanwhile."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fusion_core.storage import Storage
from fusion_http.request_context import RequestContext

from .api_process import Server, serving

DEADLINE_S = 2.0
SLACK_S = 3.0


@pytest.fixture
def server(storage: Storage, service_environment: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    environment = service_environment | {"FUSION_CLIENT_DEADLINE_S": str(DEADLINE_S)}
    with serving(environment, tmp_path / "api.log") as server:
        yield server


class Line:
    """One connection, and what comes back on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def drip(self, content: bytes, every_s: float) -> None:
        """A byte at a time, until the other side has had enough."""
        try:
            for at in range(len(content)):
                self.writer.write(content[at : at + 1])
                await self.writer.drain()
                await asyncio.sleep(every_s)
        except ConnectionError:
            return

    async def rest(self, within_s: float) -> bytes:
        """Everything until the server closes the connection, which it must do in time."""
        received = b""
        async with asyncio.timeout(within_s):
            try:
                while chunk := await self._reader.read(65536):
                    received += chunk
            except ConnectionError:
                pass
        return received


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Line]:
    url = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()


def problem_of(answer: bytes) -> tuple[int, str]:
    """The status and the code of a raw answer that is a problem and ends its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().splitlines()
    assert "content-type: application/problem+json" in lines
    assert "connection: close" in lines
    assert any(line.startswith("x-request-id: ") for line in lines)
    problem = json.loads(body)
    assert f"content-length: {len(body)}" in lines
    assert problem["request_id"]
    return int(lines[0].split()[1]), problem["code"]


def post(customer: Any, length: int) -> bytes:
    lines = ["POST /api/jobs HTTP/1.1", "host: api", f"authorization: Bearer {customer.secret}"]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


async def test_a_head_a_byte_at_a_time_is_cut_off_while_others_are_served(server: Server) -> None:
    async with connected(server) as line:
        started = time.monotonic()
        dripping = asyncio.create_task(line.drip(b"GET /health HTTP/1.1\r\nhost: api\r\nx-a: " + b"a" * 1000, 0.1))
        async with httpx.AsyncClient(base_url=server.url, timeout=10) as web:
            assert (await web.get("/health")).status_code == 200
        answer = await line.rest(DEADLINE_S + SLACK_S)
        assert time.monotonic() - started > DEADLINE_S / 2
        await dripping
    assert problem_of(answer) == (408, "request_timeout")


async def test_a_body_a_byte_at_a_time_is_cut_off(server: Server, customer: Any) -> None:
    async with connected(server) as line:
        line.writer.write(post(customer, 1000))
        dripping = asyncio.create_task(line.drip(b" " * 1000, 0.1))
        answer = await line.rest(DEADLINE_S + SLACK_S)
        await dripping
    assert problem_of(answer) == (408, "request_timeout")
    assert [entry["status"] for entry in server.lines() if entry["event"] == "request"][-1] == 408
    assert [entry for entry in server.lines() if entry["level"] in ("error", "critical")] == []


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "an empty line"])
async def test_a_connection_that_asks_for_nothing_ends(server: Server, sent: bytes) -> None:
    async with connected(server) as line:
        line.writer.write(sent)
        assert await line.rest(DEADLINE_S + SLACK_S) == b""


async def test_the_next_request_on_a_connection_is_timed_too(server: Server) -> None:
    async with connected(server) as line:
        line.writer.write(b"GET /health HTTP/1.1\r\nhost: api\r\n\r\n")
        await asyncio.sleep(0.5)
        dripping = asyncio.create_task(line.drip(b"GET /health HTTP/1.1\r\nx-a: " + b"a" * 1000, 0.1))
        answer = await line.rest(DEADLINE_S + SLACK_S)
        await dripping
    first, rest = answer.split(b"}", 1)
    assert first.startswith(b"HTTP/1.1 200")
    assert problem_of(rest) == (408, "request_timeout")


@pytest.mark.parametrize(
    ("start", "rest"),
    [(b"GET /health HTTP/1.1\r\n", b"x-a: b\r\n"), (b"GET /", b"aaaaaaaa"), (b"", b"\r\n\r\n")],
    ids=["headers", "url", "no request"],
)
async def test_a_head_without_an_end_is_refused(server: Server, start: bytes, rest: bytes) -> None:
    async with connected(server) as line:
        line.writer.write(start)
        try:
            for _ in range(100):
                line.writer.write(rest * 512)
                await line.writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        answer = await line.rest(SLACK_S)
    assert answer == b"" or problem_of(answer) == (431, "headers_too_large")


async def test_what_is_no_http_is_a_problem_too(server: Server) -> None:
    async with connected(server) as line:
        line.writer.write(b"\x16\x03\x01 not HTTP\r\n\r\n")
        answer = await line.rest(SLACK_S)
    assert problem_of(answer) == (400, "malformed_body")


async def test_a_request_beyond_those_that_fit_is_told_to_come_again() -> None:
    arrived, release = asyncio.Semaphore(0), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        arrived.release()
        await release.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(RequestContext(slow, most_at_once=2))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://api", timeout=10) as web:
        held = [asyncio.create_task(web.get("/health")) for _ in range(2)]
        for _ in held:
            await arrived.acquire()
        refused = await web.get("/health")
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert refused.json()["request_id"] == refused.headers["x-request-id"]
        assert refused.headers["retry-after"] == "2"
        release.set()
        assert [answer.status_code for answer in await asyncio.gather(*held)] == [204, 204]
        assert (await web.get("/health")).status_code == 204, "room again"


async def test_a_body_that_nobody_reads_has_an_end(server: Server) -> None:
    """It goes on after the answer (401, before the body was looked at)."""
    sent = 0
    async with connected(server) as line:
        line.writer.write(b"POST /api/jobs HTTP/1.1\r\nhost: api\r\ncontent-length: 99999999999\r\n\r\n")
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(20):
                while True:
                    line.writer.write(b" " * 65536)
                    await line.writer.drain()
                    sent += 65536
    assert sent < 64 * 2**20


async def test_a_client_that_takes_nothing_is_cut_off(server: Server, customer: Any) -> None:
    async with connected(server) as line:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket
        try:
            async with asyncio.timeout(60):
                while True:  # the document, again and again, until the kernel's buffers are full
                    line.writer.write(b"GET /api/openapi.json HTTP/1.1\r\nhost: api\r\n\r\n")
                    await line.writer.drain()
                    await asyncio.sleep(0.01)
        except ConnectionError:
            return
    raise AssertionError("the connection lived on")


async def test_streams_and_slow_thinkers_are_left_alone(server: Server, customer: Any, base_model_id: str) -> None:
    """A stream lives past every deadline, as do pauses between requests."""
    path = f"/api/jobs/{await customer.submit(base_model_id)}/events"
    headers = {"Authorization": f"Bearer {customer.secret}", "Accept": "text/event-stream"}
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=30) as web,
        web.stream("GET", path, headers=headers) as stream,
    ):
        lines = stream.aiter_lines()
        assert await anext(lines) == ": connected"
        await asyncio.sleep(2.5 * DEADLINE_S)
        await customer.send("POST", path.replace("/events", "/cancel"))
        assert "event: cancelled" in [line async for line in lines]
        assert (await web.get("/health")).status_code == 200
        await asyncio.sleep(1.5 * DEADLINE_S)
        assert (await web.get("/health")).status_code == 200


async def test_large_bodies_and_pipelined_requests_are_taken(
    server: Server, customer: Any, problem: Callable[[httpx.Response, str], Any]
) -> None:
    headers = {"Authorization": f"Bearer {customer.secret}"}
    async with httpx.AsyncClient(base_url=server.url, timeout=30, headers=headers) as web:
        problem(await web.post("/api/jobs", content=b" " * (2**20 - 1)), "malformed_body")
        problem(await web.post("/api/jobs", content=b" " * 2**21), "payload_too_large")
    async with connected(server) as line:
        ask = b"GET /health HTTP/1.1\r\nhost: api\r\n\r\n"
        line.writer.write(ask * 3 + ask.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        assert (await line.rest(SLACK_S)).count(b"HTTP/1.1 200 OK") == 4
