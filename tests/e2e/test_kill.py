"""Kill -9 anywhere, any process: the exported bytes and the bill are those of an undisturbed job."""

import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

FAILPOINTS = [
    "claim.before",
    "claim.after",
    "growth.before",
    "growth.after",
    "step:7",
    "checkpoint_file.before:3",
    "checkpoint_file.after:3",
    "checkpoint_row.before:2",
    "checkpoint_row.after:2",
    "export.before",
    "export.after",
    "completion.before",
    "completion.after",
]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


class Undisturbed(NamedTuple):
    """A job that nothing happened to: SHA-256 of every exported file, ledger amounts, seconds from claim to end."""

    exported: dict[str, str]
    ledger: list[int]
    seconds: float


@pytest.fixture(scope="module")
async def undisturbed(platform: Any) -> Undisturbed:
    worker = platform.start_worker("training")
    job = platform.completed(platform.submit("undisturbed"))
    platform.stack.processes.stop(worker)
    assert job.retries == 0
    assert job.last_checkpoint_step == 20
    seconds = (job.finished_at - job.started_at).total_seconds()
    return Undisturbed(platform.exported(job), await platform.ledger(job.id), seconds)


@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_killed_at_a_failpoint_the_result_is_the_same(
    platform: Any, undisturbed: Undisturbed, failpoint: str, tmp_path: Path
) -> None:
    fired = tmp_path / "fired"
    job_id = platform.submit(f"killed-{failpoint.replace(':', '-')}")  # first, so that claim.* is hit with a job there
    worker = platform.start_worker("training", failpoint=f"{failpoint}@{fired}")
    platform.wait(job_id, lambda job: fired.exists() or job.finished_at is not None)
    time.sleep(0.3)
    worker = platform.ensure_worker(worker, "training")
    job = platform.completed(job_id)
    platform.stack.processes.stop(worker)
    assert fired.exists(), "the failpoint must have been hit"
    assert (platform.exported(job), await platform.ledger(job_id)) == undisturbed[:2]
    # Before the claim there was no attempt to lose, after the completion none was left.
    assert job.retries == (0 if failpoint in ("claim.before", "completion.after") else 1)
    assert await platform.event_sequence(job_id) == list(range(1, len(await platform.event_sequence(job_id)) + 1))
    assert platform.trainers() == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_worker_lost_at_a_random_moment_changes_nothing(
    platform: Any, undisturbed: Undisturbed, seed: int
) -> None:
    worker = platform.start_worker("training")
    job_id = platform.submit(f"lost-{seed}")
    platform.wait(job_id, lambda job: job.status != "queued")
    time.sleep(undisturbed.seconds * random.Random(seed).uniform(0.0, 0.4))
    platform.stack.processes.kill(worker)
    assert platform.trainers() == []
    worker = platform.start_worker("training")
    job = platform.completed(job_id)
    platform.stack.processes.stop(worker)
    assert job.retries == 1, "killed too early or too late to show anything"
    assert (platform.exported(job), await platform.ledger(job_id)) == undisturbed[:2]


async def test_a_daemon_killed_alone_takes_its_trainer_with_it(platform: Any, undisturbed: Undisturbed) -> None:
    worker = platform.start_worker("training")
    job_id = platform.submit("daemon-killed")
    platform.wait(job_id, lambda job: job.status == "running")
    daemon = psutil.Process(platform.stack.processes.pid(worker))
    daemon.kill()
    until = time.monotonic() + 10
    while platform.trainers():
        assert time.monotonic() < until, "the trainer must die with its daemon"
        time.sleep(0.1)
    worker = platform.ensure_worker(worker, "training")
    job = platform.completed(job_id)
    platform.stack.processes.stop(worker)
    assert (platform.exported(job), job.retries) == (undisturbed.exported, 1)


async def test_a_drained_worker_hands_over_at_no_cost(platform: Any, undisturbed: Undisturbed) -> None:
    worker = platform.start_worker("training")
    job_id = platform.submit("drained")
    platform.wait(job_id, lambda job: job.last_checkpoint_step > 0)
    platform.stack.processes.stop(worker)
    worker = platform.start_worker("training")
    job = platform.completed(job_id)
    platform.stack.processes.stop(worker)
    assert (platform.exported(job), job.retries) == (undisturbed.exported, 0)


async def test_cancelled_while_it_runs(platform: Any) -> None:
    worker = platform.start_worker("training")
    job_id = platform.submit("cancelled", steps_per_cycle=20000)
    platform.wait(job_id, lambda job: job.last_checkpoint_step > 0)
    platform.client.cancel_job(job_id)
    job = platform.wait(job_id, lambda job: job.finished_at is not None, 30)
    assert (job.status, job.output_model_id) == ("cancelled", None)
    (paid,) = await platform.ledger(job_id)
    assert 0 < paid < round(job.estimate.total_usd * 1_000_000)
    platform.stack.processes.stop(worker)
    assert platform.trainers() == []
