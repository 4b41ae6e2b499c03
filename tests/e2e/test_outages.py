"""Every store and service restarted while a job runs: it completes, and its events have no gap."""

import time
from typing import Any

import pytest
import redis

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_a_job_survives_every_restart(platform: Any) -> None:
    processes, stack = platform.stack.processes, platform.stack
    worker = platform.start_worker("training")
    job_id = platform.submit("outages", steps_per_cycle=250)
    platform.wait(job_id, lambda job: job.status == "running")
    with redis.Redis.from_url(stack.redis_url) as valkey:
        valkey.flushall()
    processes.stop("valkey")
    time.sleep(0.5)
    stack.start_valkey()
    processes.stop("postgres")
    time.sleep(1)
    stack.start_postgres()
    processes.stop("api")
    platform.start_api()
    for number in range(2):
        processes.stop(f"orchestrator-{number}")
    platform.start_orchestrators()
    assert not platform.client.get_job(job_id).is_over, "the job must have lived through all of it"
    job = platform.completed(job_id, 120)
    processes.stop(worker)
    assert job.retries == 0, "an outage of Postgres is not a worker's death"
    seqs = await platform.event_sequence(job_id)
    assert seqs == list(range(1, len(seqs) + 1))


async def test_without_valkey_jobs_are_late_and_not_lost(platform: Any) -> None:
    platform.stack.processes.stop("valkey")
    worker = platform.start_worker("training")
    try:
        platform.completed(platform.submit("no-valkey"))
    finally:
        platform.stack.start_valkey()
    platform.stack.processes.stop(worker)
