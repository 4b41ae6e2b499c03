"""python -m fusion_worker: the daemon of one slot."""

import asyncio
import sys

from fusion_core import logs
from fusion_core.settings import SettingsError, load

from fusion_worker.daemon import Daemon
from fusion_worker.settings import WorkerSettings


def main() -> None:
    try:
        settings = load(WorkerSettings)
    except SettingsError as error:
        sys.exit(str(error))
    logs.configure("worker", settings.log_format)
    asyncio.run(Daemon(settings).run())


if __name__ == "__main__":
    main()
