"""The worker's launch of a trainer in a process without privileges. unprivileged_daemon.py RUN_DIR hidden|open SNOOP

Started as root it becomes `nobody`, whose trainer is then of the same user.
"""

import asyncio
import os
import pwd
import sys
from pathlib import Path

from fusion_core.parent_death import libc
from fusion_core.settings import load
from fusion_core.trainer_protocol import SampleRun, write_run
from fusion_core.undumpable import forbid_dumps
from fusion_worker.settings import WorkerSettings
from fusion_worker.trainer_process import TrainerProcess

PR_SET_DUMPABLE = 4


async def main(run_dir: Path) -> None:
    settings = load(WorkerSettings)
    run = SampleRun(job_id="job", lease_epoch=1, base_dir=str(run_dir), rows=1, seq_len=8, seed=1)
    write_run(run_dir, run)
    trainer = await TrainerProcess.launch(run, run_dir, settings)
    assert await trainer.wait() == 0, trainer.log_tail()


if os.geteuid() == 0:
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
assert libc is not None
libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as every process that was started by its user; giving up root had cleared it
if sys.argv[2] == "hidden":
    forbid_dumps()
asyncio.run(main(Path(sys.argv[1])))
