"""Workers that end by themselves, on machines made for one job, and the mark that tells a probe they are alive."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
from fusion_worker.daemon import Daemon
from fusion_worker.settings import WorkerSettings

from .conftest import Site


async def test_a_worker_for_one_job_ends_with_it(site: Site, worker_settings: WorkerSettings) -> None:
    jobs = [await site.train(), await site.train()]
    daemon = Daemon(msgspec.structs.replace(worker_settings, exit_after_jobs=1))
    await asyncio.wait_for(daemon.run(), 60)
    assert sorted([(await site.job(job_id)).state for job_id in jobs]) == ["completed", "queued"]
    assert await site.pool.fetchval("select state from workers") == "gone"


async def test_an_idle_worker_ends_after_its_time_and_not_before_its_last_job(
    site: Site, worker_settings: WorkerSettings
) -> None:
    job_id = await site.train()
    daemon = Daemon(msgspec.structs.replace(worker_settings, exit_when_idle_s=0.01))
    await asyncio.wait_for(daemon.run(), 60)
    assert (await site.job(job_id)).state == "completed"


def probe(work_dir: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "fusion_worker.alive", str(work_dir)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


async def test_the_probe_tells_a_turning_loop_from_a_hanging_one(worker_settings: WorkerSettings, site: Site) -> None:
    work_dir = Path(worker_settings.work_dir)
    assert "left no mark" in probe(work_dir).stderr
    await asyncio.wait_for(Daemon(msgspec.structs.replace(worker_settings, exit_when_idle_s=0.01)).run(), 60)
    assert probe(work_dir).returncode == 0
    os.utime(work_dir / "alive", (0, 0))
    assert "last turned" in probe(work_dir).stderr
