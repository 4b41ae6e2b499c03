"""An answer begins within its deadline, whatever the stores do: else the client reads 503 at once.

A store that takes connections and never answers costs one limit after another: the statement's, its cancellation's, the
rollback's. So the work is cancelled and unwinds behind the answer, at its own pace.
"""

import asyncio
from typing import Any

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send

from fusion_http.problem_details import send_not_ready

log = structlog.get_logger()


class AnswerDeadline:
    """ASGI: an answer that has not begun after `seconds` is `not_ready`; while the client sends, no time passes.

    Streams count until they begin.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await _Clocked(self._seconds, receive, send).run(self._app, scope)
        else:
            await self._app(scope, receive, send)


class _Clocked:
    """One request, in its task, with a clock that stands still while its body arrives."""

    def __init__(self, seconds: float, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._receive, self._send = receive, send
        self._due = self._loop.time() + seconds
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: asyncio.Task[None] | None = None
        self._received = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        self._timer = self._loop.call_at(self._due, self._expire)
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            if self._refusal is None:
                raise
        finally:
            self._stop()
        if self._refusal is not None:
            await self._refused(self._refusal)

    async def receive(self) -> HTTPReceiveMessage:
        if self._received or self._timer is None:
            return await self._receive()  # type: ignore[return-value]  # of HTTP alone
        left = self._due - self._loop.time()
        self._stop()
        try:
            message: Any = await self._receive()
        finally:
            self._due = self._loop.time() + left
            self._timer = self._loop.call_at(self._due, self._expire)
        self._received = not message.get("more_body", False)
        return message  # type: ignore[no-any-return]

    async def send(self, message: Message) -> None:
        if self._refusal is None:  # else it comes too late
            self._stop()
            await self._send(message)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        assert self._task is not None
        self._timer = None
        self._refusal = self._loop.create_task(send_not_ready(self._send, "a store does not answer"))
        self._task.cancel()

    async def _refused(self, refusal: "asyncio.Task[None]") -> None:
        assert self._task is not None
        structlog.contextvars.bind_contextvars(problem="not_ready")
        if self._task.uncancel():  # somebody else cancels it, too
            raise asyncio.CancelledError
        log.warning("answer_deadline_passed")
        await refusal
