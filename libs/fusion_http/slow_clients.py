"""Clients that send or take too slowly, or send too much, are cut off: each holds a connection and memory.

uvicorn has a deadline between requests alone, and httptools no limit on a request's head. Whoever is slow with a body
is answered by the application; whoever does not get that far, or does not stop, is cut off by the protocol.
"""

import asyncio
from typing import ClassVar
from uuid import uuid4

import msgspec
import structlog
from litestar.types import HTTPReceiveMessage, Receive
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fusion_http.problem_details import MEDIA_TYPE, ProblemError, describe

MAX_HEAD_BYTES = 64 * 1024
MAX_UNREAD_BYTES = 8 * 2**20
_REASONS = {
    "malformed_body": "Bad Request",
    "request_timeout": "Request Timeout",
    "headers_too_large": "Request Header Fields Too Large",
}

log = structlog.get_logger()


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 on one connection. A head comes within `deadline_s` and in MAX_HEAD_BYTES, a body within twice that time
    and in `max_body_bytes` and some more that nobody reads; what is written is taken within `deadline_s`.
    """

    deadline_s: ClassVar[float]
    max_body_bytes: ClassVar[int]

    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None
    _part: str | None = None  # of the request that is arriving: "head", "body", or None between two
    _received = 0

    @classmethod
    def within(cls, deadline_s: float, max_body_bytes: int) -> type["BoundedProtocol"]:
        """The protocol with its limits, as uvicorn takes it: a class."""
        return type(cls.__name__, (cls,), {"deadline_s": deadline_s, "max_body_bytes": max_body_bytes})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._read_within(self.deadline_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._reading is None:
            self._read_within(self.deadline_s)
        self._received += len(data)
        super().data_received(data)
        in_body = self._part == "body"
        if self._received > (self.max_body_bytes + MAX_UNREAD_BYTES if in_body else MAX_HEAD_BYTES):
            self._cut_off("headers_too_large")

    def on_message_begin(self) -> None:
        self._part = "head"
        if self._reading is None:  # it came in one piece with the end of the one before
            self._read_within(self.deadline_s)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._part = "body"
        self._read_within(2 * self.deadline_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._part, self._received = None, 0
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so like everything else, unless another answer is on its way."""
        self._stop_waiting()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
        else:
            self._refuse("malformed_body", "this is no HTTP/1.1 request")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.deadline_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _read_within(self, seconds: float) -> None:
        self._stop_waiting()
        self._reading = self.loop.call_later(seconds, self._cut_off, "request_timeout")

    def _stop_waiting(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _cut_off(self, code: str) -> None:
        """Whoever is still sending a head is told why, unless another answer is on its way to him."""
        self._stop_waiting()
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing() or (answering and self._part is None):
            return  # or stray bytes during an answer: they make no request
        if self._part == "head" and not answering:
            self._refuse(code)
        else:
            self.transport.abort()

    def _refuse(self, code: str, detail: str = "") -> None:
        request_id = uuid4().hex
        problem = msgspec.structs.replace(describe(code, detail), request_id=request_id)
        body = msgspec.json.encode(problem)
        head = [
            f"HTTP/1.1 {problem.status} {_REASONS[code]}",
            f"content-type: {MEDIA_TYPE}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()
        log.info("request", status=problem.status, code=code, request_id=request_id)


def read_within(receive: Receive, deadline_s: float) -> Receive:
    """`receive` of one request, whose body must be there `deadline_s` from now; afterwards it waits as before.

    What it answers raises ProblemError request_timeout.
    """
    deadline = asyncio.get_running_loop().time() + deadline_s
    complete = False

    async def receive_in_time() -> HTTPReceiveMessage:
        nonlocal complete
        if complete:
            return await receive()  # type: ignore[return-value]  # of HTTP alone
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            detail = f"the body did not come within {deadline_s:g} seconds"
            raise ProblemError("request_timeout", detail, headers={"Connection": "close"}) from None
        complete = not message.get("more_body", False)
        return message  # type: ignore[return-value]  # of HTTP alone

    return receive_in_time
