"""A group of two machines: a leader in this process, a follower as a process of its own, each with a stub trainer."""

import asyncio
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fusion_local.processes import Processes
from fusion_local.stack import HOST, free_port
from fusion_worker.daemon import Daemon
from fusion_worker.group import GroupIncompleteError
from fusion_worker.settings import WorkerSettings
from msgspec.structs import replace

from .conftest import Site, Start, alive, family_of, until

SECRET = "a secret of both machines"
WAITS = shlex.join([sys.executable, "-c", "import time; time.sleep(60)"])
StartFollower = Callable[..., str]


@pytest.fixture
def group(tmp_path: Path) -> dict[str, object]:
    """Settings that leader and follower share."""
    return {"nodes": 2, "leader_host": HOST, "group_host": HOST, "group_port": free_port(), "group_secret": SECRET}


@pytest.fixture
def start_follower(
    group: dict[str, object], processes: Processes, worker_environment: dict[str, str], tmp_path: Path
) -> StartFollower:
    """Starts a follower in its own folder and answers that folder. None of them knows of the database or of Redis."""

    def start(name: str = "follower", **changes: object) -> str:
        folder = str(tmp_path / name)
        own = group | {"node_rank": 1, "work_dir": folder, "trainer_command": WAITS} | changes
        env = worker_environment | {f"FUSION_{key.upper()}": str(value) for key, value in own.items()}
        for unused in ("FUSION_DATABASE_URL", "FUSION_REDIS_URL"):
            del env[unused]
        processes.start(name, [sys.executable, "-m", "fusion_worker"], env=env)
        return folder

    return start


async def test_a_group_works_at_a_job_and_is_whole_again_for_the_next(
    site: Site, start_daemon: Start, start_follower: StartFollower, group: dict[str, object]
) -> None:
    folder = start_follower()
    await start_daemon(**group)
    for job_id in [await site.train(), await site.train()]:
        job = await site.reaches(job_id, "completed")
        assert job.retries == 0
    assert list(Path(folder, "cache").iterdir()), "the follower has brought the inputs to its own disk"

    async def cleaned() -> bool:
        return not alive(family_of(f"{folder}/runs")) and not Path(folder, "runs").exists()

    await until(cleaned, "nothing is left on the follower")


async def test_without_its_follower_a_leader_claims_nothing(
    site: Site, start_daemon: Start, start_follower: StartFollower, group: dict[str, object]
) -> None:
    job_id = await site.train()
    start_follower("stranger", group_secret="a secret of somebody else")
    leader = await start_daemon(**group)
    with pytest.raises(AssertionError, match="not within"):
        await site.reaches(job_id, "running", deadline_s=2)
    assert leader._group is not None
    assert not leader._group.whole
    start_follower()
    await site.reaches(job_id, "completed")


async def test_killed_the_follower_takes_the_attempt_with_it_and_the_job_goes_on_from_its_checkpoint(
    site: Site, start_daemon: Start, start_follower: StartFollower, group: dict[str, object], processes: Processes
) -> None:
    folder = start_follower()
    await start_daemon(**group)
    job_id = await site.train("sleep")
    await site.has_event(job_id, "checkpoint")
    trainers = family_of(f"{folder}/runs")
    assert alive(trainers)
    psutil.Process(processes.pid("follower")).kill()
    (interrupted,) = await site.has_event(job_id, "interrupted")
    assert (interrupted["reason"], interrupted["code"], interrupted["resume_step"]) == ("lost", "node_lost", 2)

    async def gone() -> bool:
        return not alive(trainers)

    await until(gone, "the follower's trainer died with it")
    job = await site.job(job_id)
    assert (job.crashes, job.losses) == (0, 1)
    await asyncio.to_thread(processes.stop, "follower")
    start_follower("next")
    await site.be_due(job_id)
    await site.reaches(job_id, "completed")


async def test_a_follower_that_falls_silent_is_lost_and_comes_back_clean(
    site: Site, start_daemon: Start, start_follower: StartFollower, group: dict[str, object], processes: Processes
) -> None:
    folder = start_follower()
    await start_daemon(**group)
    job_id = await site.train("sleep")
    await site.has_event(job_id, "checkpoint")
    trainers = family_of(f"{folder}/runs")
    follower = psutil.Process(processes.pid("follower"))
    follower.suspend()
    (interrupted,) = await site.has_event(job_id, "interrupted")
    assert interrupted["code"] == "node_lost"
    assert "silent" in str(interrupted["message"])
    follower.resume()
    await site.be_due(job_id)
    await site.reaches(job_id, "completed")
    assert not alive(trainers)


async def test_a_follower_shards_as_its_leader_does(
    site: Site, start_daemon: Start, start_follower: StartFollower, group: dict[str, object]
) -> None:
    folder = start_follower()
    await start_daemon(**group, sharding="fsdp2")
    job_id = await site.train("sleep")
    await site.has_event(job_id, "checkpoint")
    trainers = alive(family_of(f"{folder}/runs"))
    assert {process.environ().get("FSDP_VERSION") for process in trainers} == {"2"}


async def test_a_fault_on_the_follower_ends_the_attempt_with_its_code(
    site: Site, start_daemon: Start, start_follower: StartFollower, group: dict[str, object]
) -> None:
    start_follower(trainer_command=shlex.join([sys.executable, "-c", "raise SystemExit('x: disk_full: no space')"]))
    await start_daemon(**group)
    job_id = await site.train("sleep")
    (interrupted, *_) = await site.has_event(job_id, "interrupted")
    assert (interrupted["reason"], interrupted["code"]) == ("crash", "disk_full")
    assert str(interrupted["message"]).startswith("node 1: ")


async def test_a_follower_that_is_told_to_leave_has_the_job_saved_first(
    site: Site, start_daemon: Start, start_follower: StartFollower, group: dict[str, object], processes: Processes
) -> None:
    start_follower()
    await start_daemon(**group)
    job_id = await site.train("sleep")
    await site.has_event(job_id, "checkpoint")
    await asyncio.to_thread(processes.stop, "follower")  # the leader lives in this loop
    start_follower("next")
    job = await site.reaches(job_id, "completed")
    assert (job.retries, job.losses) == (0, 0)


async def test_killed_the_leader_leaves_no_trainer_on_its_follower(
    site: Site,
    start_follower: StartFollower,
    group: dict[str, object],
    processes: Processes,
    worker_environment: dict[str, str],
) -> None:
    folder = start_follower()
    env = {f"FUSION_{key.upper()}": str(value) for key, value in group.items()}
    processes.start("leader", [sys.executable, "-m", "fusion_worker"], env=worker_environment | env)
    job_id = await site.train("sleep")
    await site.has_event(job_id, "checkpoint")
    trainers = family_of(f"{folder}/runs")
    psutil.Process(processes.pid("leader")).kill()

    async def gone() -> bool:
        return not alive(trainers)

    await until(gone, "the follower has killed its trainer")
    assert psutil.Process(processes.pid("follower")).is_running()


async def test_a_group_that_does_not_become_whole_in_time_gives_its_machines_back(
    worker_settings: WorkerSettings, group: dict[str, object]
) -> None:
    settings = replace(worker_settings, **group, group_deadline_s=0.5)
    with pytest.raises(GroupIncompleteError, match=r"nodes \[1\]"):
        await Daemon(settings).run()
