"""python -m fusion_orchestrator: one replica; start as many as you like."""

import signal
import sys
from types import FrameType

import uvicorn
from fusion_core import logs, tracing
from fusion_core.settings import SettingsError, forget_secrets, load
from fusion_core.undumpable import forbid_dumps
from fusion_http.answer_deadline import AnswerDeadline
from fusion_http.request_context import RequestContext
from fusion_http.slow_clients import BoundedProtocol

from fusion_orchestrator.admin.app import MAX_BODY_BYTES
from fusion_orchestrator.admin.server import CLIENT_DEADLINE_S
from fusion_orchestrator.http_app import ANSWER_DEADLINE_S, create_app
from fusion_orchestrator.settings import OrchestratorSettings


def _exit_cleanly(_signal: int, _frame: FrameType | None) -> None:
    """uvicorn raises the signal again once it has shut down: by then leaving is success."""
    raise SystemExit(0)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    try:
        settings = load(OrchestratorSettings)
        tracing.configure("orchestrator", settings)
    except SettingsError as error:
        sys.exit(str(error))
    forbid_dumps()
    forget_secrets(OrchestratorSettings)
    logs.configure("orchestrator", settings.log_format)
    signal.signal(signal.SIGTERM, _exit_cleanly)
    signal.signal(signal.SIGINT, _exit_cleanly)
    try:
        uvicorn.run(
            RequestContext(AnswerDeadline(create_app(settings), ANSWER_DEADLINE_S), CLIENT_DEADLINE_S),
            http=BoundedProtocol.within(CLIENT_DEADLINE_S, MAX_BODY_BYTES),
            ws="none",
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(settings.shutdown_s),
            server_header=False,
        )
    finally:
        tracing.close()


if __name__ == "__main__":
    main()
