"""Jobs and daemons of the worker's tests, customers of the API's."""

from tests.integration.api.conftest import application, http
from tests.integration.worker.conftest import processes, site, start_daemon, worker_environment, worker_settings

__all__ = ["application", "http", "processes", "site", "start_daemon", "worker_environment", "worker_settings"]
