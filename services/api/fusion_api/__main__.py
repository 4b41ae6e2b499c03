"""python -m fusion_api: serve the public API."""

import contextlib
import sys
from types import FrameType

import uvicorn
from fusion_core import logs, tracing
from fusion_core.settings import SettingsError, forget_secrets, load
from fusion_core.undumpable import forbid_dumps
from fusion_http.answer_deadline import AnswerDeadline
from fusion_http.request_context import RequestContext
from fusion_http.slow_clients import BoundedProtocol
from litestar import Litestar

from fusion_api.app import create_app
from fusion_api.services import Services
from fusion_api.settings import ApiSettings


class Server(uvicorn.Server):
    """On SIGTERM open streams end at once, instead of holding the process until they are cut off."""

    def __init__(self, config: uvicorn.Config, app: Litestar) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        services: Services | None = self._app.state.get("services")  # None: the signal came while starting
        if services is not None:
            services.hub.close()
        super().handle_exit(sig, frame)


def main() -> None:
    try:
        settings = load(ApiSettings)
        tracing.configure("api", settings)
    except SettingsError as error:
        sys.exit(str(error))
    forbid_dumps()
    forget_secrets(ApiSettings)
    logs.configure("api", settings.log_format)
    app = create_app(settings)
    app.state.metrics.serve(settings)
    config = uvicorn.Config(
        RequestContext(
            AnswerDeadline(app, settings.answer_deadline_s),
            settings.client_deadline_s,
            watch=app.state.metrics.answered,
        ),
        http=BoundedProtocol.within(settings.client_deadline_s, settings.max_body_bytes),
        ws="none",
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    server = Server(config, app)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises Ctrl-C again once it has shut down
            server.run()
    finally:
        tracing.close()
    if not server.started:
        sys.exit("the API could not start; the log says why")


if __name__ == "__main__":
    main()
