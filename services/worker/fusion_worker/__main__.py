"""python -m fusion_worker: the daemon of one slot, or of a machine that follows another."""

import asyncio
import os
import sys

import structlog
from fusion_core import logs, tracing
from fusion_core.settings import SettingsError, forget_secrets, load, read_setting
from fusion_core.undumpable import forbid_dumps

from fusion_worker.confinement import TrainerUser
from fusion_worker.daemon import Daemon
from fusion_worker.follower import Follower, FollowerSettings
from fusion_worker.group import GroupIncompleteError
from fusion_worker.settings import WorkerSettings


def read() -> WorkerSettings:
    """The settings of this machine's part. Raises SettingsError."""
    leads = read_setting("FUSION_NODE_RANK") in (None, "0")
    return load(WorkerSettings if leads else FollowerSettings)


def main() -> None:
    try:
        settings = read()
        tracing.configure("worker", settings)
        user = TrainerUser.find(settings.trainer_user)
    except SettingsError as error:
        sys.exit(str(error))
    forbid_dumps()
    forget_secrets(WorkerSettings)
    logs.configure("worker", settings.log_format)
    if os.geteuid() == 0 and user is None:
        structlog.get_logger().warning("trainers_run_as_root", hint="set FUSION_TRAINER_USER, or start as another user")
    daemon = Follower(settings) if isinstance(settings, FollowerSettings) else Daemon(settings)
    try:
        asyncio.run(daemon.run())
    except GroupIncompleteError as error:
        sys.exit(str(error))
    finally:
        tracing.close()


if __name__ == "__main__":
    main()
