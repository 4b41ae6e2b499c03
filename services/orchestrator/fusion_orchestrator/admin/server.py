"""The admin port: a second server in the orchestrator's process, which its lifespan starts and ends."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import structlog
import uvicorn
from fusion_http.answer_deadline import AnswerDeadline
from fusion_http.request_context import RequestContext
from fusion_http.slow_clients import BoundedProtocol

from fusion_orchestrator.admin.app import MAX_BODY_BYTES, create_admin_app
from fusion_orchestrator.admin.store_actions import DRY_RUN_DEADLINE_S
from fusion_orchestrator.service import Service

CLIENT_DEADLINE_S = 20.0
_ANSWER_DEADLINE_S = DRY_RUN_DEADLINE_S + 10
_MOST_AT_ONCE = 200
_BACKLOG = 128

log = structlog.get_logger()


class _Server(uvicorn.Server):
    """Signals are the first server's to handle."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving_admin(service: Service) -> AsyncIterator[None]:
    """Serve beside the block. Raises OSError when the port cannot be had."""
    settings = service.settings
    family = socket.AF_INET6 if ":" in settings.admin_host else socket.AF_INET
    listener = socket.create_server((settings.admin_host, settings.admin_port), family=family, backlog=_BACKLOG)
    config = uvicorn.Config(
        RequestContext(
            AnswerDeadline(create_admin_app(service), _ANSWER_DEADLINE_S),
            CLIENT_DEADLINE_S,
            _MOST_AT_ONCE,
            watch=service.metrics.admin_answered,
        ),
        http=BoundedProtocol.within(CLIENT_DEADLINE_S, MAX_BODY_BYTES),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, int(settings.shutdown_s / 4)),
        server_header=False,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="admin")
    log.info("admin_listening", host=settings.admin_host, port=listener.getsockname()[1])
    try:
        yield
    finally:
        server.should_exit = True
        await task
        listener.close()
