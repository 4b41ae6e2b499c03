"""Receivers that mean harm: each costs one attempt a bounded time and little memory, and ends as an answer."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from socket import SO_LINGER, SOL_SOCKET
from uuid import uuid4

import pytest
from fusion_core.db.webhooks import SNIPPET_LENGTH, Answer, Delivery
from fusion_core.webhook_targets import TargetPolicy
from fusion_core.webhooks import MAX_RETRY_AFTER_S, Message
from fusion_orchestrator.webhooks import send, target
from fusion_orchestrator.webhooks.send import Sender, meaning

LOCAL = TargetPolicy.of(allow_http=True, allow_private="127.0.0.1")
DEADLINE_S = 1.0
MAX_SENT = (
    target.MAX_RECEIVED + 12 * 2**20
)  # and what the kernel's own buffers on both sides may take before a write waits

OK = b"HTTP/1.1 200 OK\r\n"
Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Hostile:
    """A socket that reads a request and then does what `behaviour` does; counts the bytes it got rid of."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.port = 0
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await reader.read(65536)
            await self._behaviour(writer)
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def hostile(behaviour: Behaviour) -> AsyncIterator[Hostile]:
    receiver = Hostile(behaviour)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


def delivery(port: int, scheme: str = "http") -> Delivery:
    return Delivery(
        id=uuid4(),
        endpoint_id=uuid4(),
        epoch=1,
        attempts=1,
        message_id="job:7",
        message=Message("job.completed", datetime.now(UTC), {"seq": 7}),
        url=f"{scheme}://127.0.0.1:{port}/hook",
        secret_versions=(1,),
    )


async def attempt(behaviour: Behaviour, scheme: str = "http", tls: ssl.SSLContext | None = None) -> Answer:
    """The answer of one attempt, which must come: that it comes within the deadline is too fine for a busy machine."""
    async with hostile(behaviour) as receiver:
        async with asyncio.timeout(30 * DEADLINE_S):
            answer = await Sender("k" * 32, LOCAL, tls=tls).send(delivery(receiver.port, scheme))
        assert receiver.connections == 1, "an attempt is one connection and one request"
        return answer


@pytest.fixture(autouse=True)
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "DEADLINE_S", DEADLINE_S)
    monkeypatch.setattr(send, "_BODY_DEADLINE_S", DEADLINE_S / 4)


def drip(start: bytes, rest: bytes) -> Behaviour:
    """A byte now and then, for ever."""

    async def send_slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            for at in range(len(rest)):
                writer.write(rest[at : at + 1])
                await writer.drain()
                await asyncio.sleep(0.02)

    return send_slowly


@pytest.mark.parametrize(
    ("start", "rest"),
    [(b"", b"HTTP/1.1 200 OK\r\n"), (OK, b"x-a: b\r\n"), (b"", b"HTTP/1.1 100 Continue\r\n\r\n")],
    ids=["status line", "headers", "interim answers"],
)
async def test_an_answer_that_drips_runs_into_the_deadline(start: bytes, rest: bytes) -> None:
    answer = await attempt(drip(start, rest))
    assert answer.outcome == "retry"
    assert answer.error


async def test_a_body_that_drips_is_cut_off_and_the_status_counts() -> None:
    answer = await attempt(drip(OK + b"content-length: 1000000\r\n\r\n", b"zzz"))
    assert (answer.outcome, answer.status) == ("delivered", 200)
    assert set(answer.snippet or "") == {"z"}


@pytest.mark.parametrize(
    ("start", "rest"),
    [
        (OK, b"x-a: b\r\n" * 1000),
        (OK + b"x-a: ", b"a" * 65536),
        (b"HTTP/1.1 200 ", b"a" * 65536),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 1000),
        (b"", b"\0" * 65536),
        (b"", b"\r\n" * 65536),
        (OK + b"transfer-encoding: chunked\r\n\r\n", b"1;" + b"e" * 65536),
        (OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10000),
        (OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x-a: b\r\n" * 1000),
        (OK + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 15 + b"\r\n", b"x" * 65536),
        (OK + b"content-length: 99999999999999\r\n\r\n", b"x" * 65536),
        (OK + b"content-encoding: gzip\r\n\r\n", b"\x1f\x8b" + b"\0" * 65536),
        (OK + b"\r\n", b"x" * 65536),
    ],
    ids=[
        "headers",
        "one header",
        "reason",
        "interim answers",
        "zeros",
        "line ends",
        "chunk extensions",
        "small chunks",
        "trailers",
        "one chunk",
        "content-length",
        "gzip",
        "until the end",
    ],
)
async def test_an_answer_without_an_end_is_read_up_to_a_limit(start: bytes, rest: bytes) -> None:
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(start)
        while True:
            writer.write(rest)
            await writer.drain()
            sent += len(rest)
            await asyncio.sleep(0)

    answer = await attempt(flood)
    assert sent < MAX_SENT
    assert len(answer.snippet or "") <= SNIPPET_LENGTH
    assert len(answer.error or "") <= 500


def reset_after(start: bytes) -> Behaviour:
    async def reset(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return reset


def close_after(start: bytes) -> Behaviour:
    async def close(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await writer.drain()

    return close


@pytest.mark.parametrize("ending", [reset_after, close_after])
@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1 2",
        OK,
        OK + b"x-a: \xff\xfe\r\n",
        b"\x15\x03\x01\0\x02\x02\x46",
        b"HTTP/1.1 99999 No\r\n\r\n",
        b"HTTP/1.1 -1 No\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        OK + b"content-length: -1\r\n\r\n",
        OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ],
)
async def test_an_answer_that_breaks_off_or_is_none_is_tried_again(
    start: bytes, ending: Callable[[bytes], Behaviour]
) -> None:
    answer = await attempt(ending(start))
    assert answer.outcome == "retry", answer
    assert answer.error
    (answer.error + (answer.snippet or "")).encode()  # as Postgres takes it


async def test_a_receiver_without_tls_is_told_apart() -> None:
    answer = await attempt(close_after(OK + b"\r\n"), scheme="https")
    assert answer.outcome == "retry"
    assert "ssl" in (answer.error or "").lower()


async def test_a_bug_of_ours_keeps_to_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> list[str]:
        raise KeyError("a bug")

    answer = await Sender("k" * 32, LOCAL, look_up=broken).send(delivery(1))
    assert (answer.outcome, answer.error) == ("retry", "something broke on our side")


@pytest.mark.parametrize(
    "value",
    [
        "9" * 8000,
        "-1",
        "1e9",
        "\u0663",
        "NaN",
        "Thu, 99999999999999999999 Jan 2026 00:00:00 GMT",
        "Thu, 01 Jan 0001 00:00:00 +2359",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Fri, 31 Dec 9999 23:59:59 +999999999999",
        "Fri, 31 Dec 2026 99:99:99 GMT",
        pytest.param(format_datetime(datetime.now(UTC)), id="now"),
        ",",
        "",
    ],
)
def test_no_retry_after_breaks_or_stretches_the_schedule(value: str) -> None:
    answer = meaning(delivery(1), 503, "", {"Retry-After": value})
    assert answer.outcome == "retry"
    assert 0 < (answer.retry_s or 0) <= MAX_RETRY_AFTER_S
