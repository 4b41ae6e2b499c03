"""A TCP proxy that breaks connections in the ways networks do, one listener for each pair of a client and a server.

A fault is set on a `Link` by name and holds until another is set. `half_open` outlives its healing: bytes that were
swallowed never come again, so a connection that met it is silent for ever and only a new one passes, as after a
firewall that forgot a connection or a machine that lost its power.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

HOST = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
REPLY_DEADLINE_S = 10.0
FORGET_AFTER_S = 600.0  # the server's end of a silent connection is cut then, as a keepalive would
T = TypeVar("T")

_HTTP_METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Try again.</Message></Error>"


class Kind(StrEnum):
    PASS = "pass"
    CUT = "cut"  # every connection is reset, and every new one
    DELAY = "delay"  # each piece waits `delay_s`, and up to `jitter_s` more
    SLOW = "slow"  # `bytes_per_s` in each direction
    HALF_OPEN = "half_open"  # both directions are swallowed, the sockets stay
    HTTP_503 = "http_503"  # each HTTP request is answered SlowDown
    HTTP_500 = "http_500"  # each HTTP request is answered InternalError
    HTTP_HANG = "http_hang"  # each HTTP request gets the head of an answer and never a body


class Fault(NamedTuple):
    """What a link does to the bytes it carries."""

    kind: Kind = Kind.PASS
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0


PASS = Fault()


class _Connection:
    """A client's connection and its twin to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.silent = False

    def abort(self) -> None:
        for writer in (self.client, self.server):
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a peer that crashed answers."""
    handle = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Link:
    """One listener that forwards to one server. Everything here runs in the proxy's own loop."""

    def __init__(self, target_port: int, jitter: random.Random, host: str) -> None:
        self._target_port = target_port
        self._host = host
        self._jitter = jitter
        self._fault = PASS
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def set(self, fault: Fault) -> None:
        """From now on, for the connections that are open too."""
        hung = self._fault.kind is Kind.HTTP_HANG
        self._fault = fault
        for connection in list(self._connections):
            if fault.kind is Kind.CUT or (hung and not connection.silent):
                connection.abort()
            elif fault.kind is Kind.HALF_OPEN:
                connection.silent = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            _reset(writer)
        finally:
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault.kind is Kind.CUT:
            _reset(writer)
            return
        upstream, server = await asyncio.open_connection(HOST, self._target_port)
        connection = _Connection(writer, server)
        connection.silent = self._fault.kind is Kind.HALF_OPEN
        self._connections.add(connection)
        try:
            up = asyncio.create_task(self._pump(connection, reader, server, upward=True))
            down = asyncio.create_task(self._pump(connection, upstream, writer, upward=False))
            try:
                await asyncio.gather(up, down)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upward: bool
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            fault = self._fault
            if upward and fault.kind in _ANSWERS and chunk.startswith(_HTTP_METHODS) and not connection.silent:
                await self._answer(connection, reader, fault.kind)
                return
            await self._pass(connection, chunk, writer, fault)
        if connection.silent:  # nobody tells the other end
            await asyncio.sleep(FORGET_AFTER_S)
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _pass(self, connection: _Connection, chunk: bytes, writer: asyncio.StreamWriter, fault: Fault) -> None:
        if fault.kind is Kind.DELAY:
            await asyncio.sleep(fault.delay_s + self._jitter.uniform(0, fault.jitter_s))
        elif fault.kind is Kind.SLOW:
            await asyncio.sleep(len(chunk) / fault.bytes_per_s)
        if not connection.silent:  # it may have become so meanwhile
            writer.write(chunk)
            await writer.drain()

    async def _answer(self, connection: _Connection, reader: asyncio.StreamReader, kind: Kind) -> None:
        """Answer a request in the server's place, and take its body without a word."""
        status, body = _ANSWERS[kind]
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body) or 10**6}\r\n"
        connection.client.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        await connection.client.drain()
        if body:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPLY_DEADLINE_S):
                    while await reader.read(CHUNK_BYTES):
                        pass
        else:
            while await reader.read(CHUNK_BYTES):
                pass
        connection.abort()


_ANSWERS = {
    Kind.HTTP_503: ("503 Slow Down", _SLOW_DOWN),
    Kind.HTTP_500: ("500 Internal Server Error", _INTERNAL),
    Kind.HTTP_HANG: ("200 OK", b""),
}


class Proxy:
    """Every link of a harness, in a thread with a loop of its own. Use as a context manager; safe from any thread."""

    def __init__(self, seed: int = 0) -> None:
        self._jitter = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.links: dict[str, Link] = {}

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for link in self.links.values():
            self._do(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(REPLY_DEADLINE_S)
        self._loop.close()

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(REPLY_DEADLINE_S)

    def link(self, name: str, target_port: int, host: str = HOST) -> int:
        """A new link to a server on this machine; answers the port of `host` that its client should use."""
        link = Link(target_port, self._jitter, host)
        self._do(link.open())
        self.links[name] = link
        return link.port

    def set(self, name: str, fault: Fault) -> None:
        """Raises KeyError for a link that is not there."""
        self._do(self.links[name].set(fault))

    def heal(self) -> None:
        """Every link passes again; connections that fell silent stay so."""
        for link in self.links.values():
            self._do(link.set(PASS))
