"""python -m fusion_api: serve the public API."""

import sys

import uvicorn
from fusion_core import logs
from fusion_core.settings import SettingsError, load

from fusion_api.app import create_app
from fusion_api.request_context import RequestContext
from fusion_api.settings import ApiSettings


def main() -> None:
    try:
        settings = load(ApiSettings)
    except SettingsError as error:
        sys.exit(str(error))
    logs.configure("api", settings.log_format)
    uvicorn.run(
        RequestContext(create_app(settings)),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        limit_concurrency=2000,
        h11_max_incomplete_event_size=65536,
        server_header=False,
    )


if __name__ == "__main__":
    main()
