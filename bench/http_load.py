"""A load of HTTP/1.1 requests over connections that stay open: little enough of a client to load a server fully."""

import asyncio
import re
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_NUMBER = re.compile(rb'"n":(\d+)')


class Load(NamedTuple):
    """Seconds of each request, and of the whole."""

    times: list[float]
    wall_s: float

    @property
    def per_s(self) -> float:
        return len(self.times) / self.wall_s

    def ms(self, percent: int) -> float:
        return quantile_ms(self.times, percent)


def quantile_ms(seconds: list[float], percent: int) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1] * 1000


def message(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def load(port: int, make: Callable[[], bytes], seconds: float, connections: int = 16) -> Load:
    """As many requests as `connections` clients can send, each waiting for its answer. Raises RuntimeError."""
    times: list[float] = []
    began = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            writer.write(make())
            head = await reader.readuntil(b"\r\n\r\n")
            found = _LENGTH.search(head)
            answer = await reader.readexactly(int(found.group(1))) if found else b""
            if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
                raise RuntimeError(f"{head[:80]!r} {answer[:300]!r}")
            times.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return Load(times, time.perf_counter() - began)


class Listeners:
    """Open event streams; `arrivals` collects (the n of an event's data, when it came) of all of them."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._port, self._headers = port, headers | {"Accept": "text/event-stream"}
        self._tasks: list[asyncio.Task[None]] = []
        self.arrivals: list[tuple[int, float]] = []

    async def open(self, path: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(message("GET", path, self._headers))
        await reader.readuntil(b": connected")
        self._tasks.append(asyncio.create_task(self._listen(reader, writer)))

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                found = _NUMBER.search(await reader.readuntil(b"\n\n"))
                if found:
                    self.arrivals.append((int(found.group(1)), time.perf_counter()))
        finally:
            writer.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
