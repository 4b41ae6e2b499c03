"""What goes wrong stays small: trainers that hang are found, explained and killed, and the next job runs."""

import pytest
from fusion_worker import stall_watch
from fusion_worker.settings import WorkerSettings

from .conftest import Site, Start, alive, family_of


async def test_a_trainer_that_hangs_is_killed_explained_and_resumed(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings
) -> None:
    job_id = await site.train("hang")
    await start_daemon(stall_s=1)
    await site.has_event(job_id, "checkpoint")
    family = family_of(worker_settings.work_dir)
    assert len(alive(family)) == 2
    (interrupted,) = await site.has_event(job_id, "interrupted")
    assert (interrupted["reason"], interrupted["code"], interrupted["resume_step"]) == ("crash", "trainer_stalled", 2)
    message = str(interrupted["message"])
    assert "in phase training after step 2" in message
    assert "stub_trainer.py" in message
    assert "in hang" in message
    await site.be_due(job_id)
    assert (await site.reaches(job_id, "completed")).retries == 1
    assert alive(family) == []


async def test_a_trainer_that_hangs_every_time_fails_its_job_with_the_reason(site: Site, start_daemon: Start) -> None:
    job_id, neighbour = await site.train("stall"), await site.train()
    await start_daemon(stall_s=1)
    for crash in (1, 2):
        await site.has_event(job_id, "interrupted", crash)
        await site.be_due(job_id)
    error = (await site.reaches(job_id, "failed")).error
    assert error is not None
    assert error["code"] == "retry_budget_spent"
    assert [one["code"] for one in error["errors"]] == ["trainer_stalled"]
    assert "after step 2" in error["message"]
    await site.reaches(neighbour, "completed")


async def test_a_trainer_that_does_not_leave_when_it_is_done_costs_a_minute_and_no_retry(
    site: Site, start_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall_watch, "EXIT_S", 0.5)
    job_id = await site.train("linger")
    await start_daemon()
    assert (await site.reaches(job_id, "completed")).retries == 0


async def test_a_broken_gpu_drains_its_worker_and_another_finishes_the_job(
    site: Site, start_daemon: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job_id = await site.train("broken")
    await start_daemon(name="struck")
    (interrupted,) = await site.has_event(job_id, "interrupted")
    assert interrupted["code"] == "gpu_fault"
    reason = await site.pool.fetchval("select drain_reason from workers where name = 'struck'")
    assert "uncorrectable ECC" in reason
    await start_daemon(name="sound", work_dir=str(tmp_path_factory.mktemp("sound")))
    await site.be_due(job_id)
    await site.reaches(job_id, "completed")
