"""Jobs that pass from one worker to the next: by a drain, by a lost lease, over a checkpoint that cannot be read."""

import signal
import sys
from datetime import datetime
from uuid import UUID, uuid4

import msgspec
import psutil
import pytest
from fusion_core.db import attempts, jobs, sweep
from fusion_core.db.admin import drain_worker
from fusion_core.db.attempts import Claimer
from fusion_core.db.audit import By
from fusion_core.trainer_protocol import MANIFEST_FILE
from fusion_local.processes import Processes
from fusion_worker.settings import WorkerSettings

from .conftest import POOL, Site, Start, alive, family_of, until


async def steps(site: Site, job_id: UUID) -> list[object]:
    return [data["step"] for kind, data in await site.events(job_id) if kind == "metrics"]


async def test_sigterm_saves_and_releases_and_the_next_worker_resumes(
    site: Site, processes: Processes, worker_environment: dict[str, str], start_daemon: Start
) -> None:
    job_id = await site.train("sleep")
    argv = [sys.executable, "-m", "fusion_worker"]
    processes.start("worker", argv, env=worker_environment)
    await site.has_event(job_id, "metrics", 2)
    worker = psutil.Process(processes.pid("worker"))
    family = {worker, *worker.children(recursive=True)}
    worker.send_signal(signal.SIGTERM)
    interrupted = await site.has_event(job_id, "interrupted")
    assert interrupted == [{"reason": "drain", "resume_step": 2}]
    assert worker.wait(20) in (0, None), processes.log_path("worker").read_text()
    assert alive(family) == []
    job = await site.job(job_id)
    assert (job.state, job.retries, job.crashes, job.losses) == ("queued", 0, 0, 0)
    # The second daemon would sleep again if the checkpoint were not there.
    await start_daemon()
    await site.reaches(job_id, "completed")
    assert await steps(site, job_id) == [1, 2, 3, 4]


async def test_a_trainer_that_does_not_obey_a_drain_is_killed_and_the_job_released(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings
) -> None:
    job_id = await site.train("hang")
    daemon = await start_daemon(drain_grace_s=1)
    await site.has_event(job_id, "checkpoint")
    family = family_of(worker_settings.work_dir)
    daemon.drain()
    assert await site.has_event(job_id, "interrupted") == [{"reason": "drain", "resume_step": 2}]

    async def gone() -> bool:
        return not alive(family) and bool(await site.pool.fetchval("select state = 'gone' from workers"))

    await until(gone, "the worker and its trainer are gone", 10)


async def test_a_drained_worker_gives_its_job_back_and_takes_none_until_undrained(
    site: Site, start_daemon: Start
) -> None:
    job_id = await site.train("sleep")
    await start_daemon()
    await site.has_event(job_id, "metrics", 2)
    worker = await site.pool.fetchval("select id from workers")

    async def is_state(state: str) -> bool:
        row = await site.pool.fetchrow("select state, job_id from workers")
        return row is not None and (row["state"], row["job_id"]) == (state, None)

    by = By(actor="ada", reason="kernel update")
    async with site.pool.acquire() as connection:
        await drain_worker(connection, by, worker, drain=True)
    assert await site.has_event(job_id, "interrupted") == [{"reason": "drain", "resume_step": 2}]
    await until(lambda: is_state("draining"), "draining, without a job")
    job = await site.job(job_id)
    assert (job.state, job.retries, job.crashes, job.losses) == ("queued", 0, 0, 0)
    for _ in range(3):  # reports, each after a poll for jobs
        seen_at = await site.pool.fetchval("select seen_at from workers")
        await until(lambda before=seen_at: seen_after(site, before), "a report")
    assert (await site.job(job_id)).lease_epoch == 1, "nobody claims it"
    async with site.pool.acquire() as connection:
        await drain_worker(connection, by, worker, drain=False)
    await site.reaches(job_id, "completed")
    assert await steps(site, job_id) == [1, 2, 3, 4]
    await until(lambda: is_state("idle"), "idle again")


async def seen_after(site: Site, moment: datetime) -> bool:
    return bool(await site.pool.fetchval("select seen_at > $1 from workers", moment))


async def test_a_stopped_job_keeps_its_checkpoint_and_resumes_on_request(site: Site, start_daemon: Start) -> None:
    job_id = await site.train("sleep")
    await start_daemon()
    await site.has_event(job_id, "metrics", 2)
    account_id = (await site.job(job_id)).account_id
    async with site.pool.acquire() as connection:
        await jobs.stop_job(connection, account_id, job_id)
    job = await site.reaches(job_id, "stopped", 10)
    assert (job.last_checkpoint_step, job.retries) == (2, 0)
    async with site.pool.acquire() as connection:
        await jobs.resume_job(connection, account_id, job_id)
    await site.reaches(job_id, "completed")
    assert await steps(site, job_id) == [1, 2, 3, 4]


async def test_a_job_claimed_by_another_is_dropped_and_nothing_more_of_it_is_seen(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings
) -> None:
    job_id = await site.train("sleep")
    await start_daemon(heartbeat_s=1.0)
    await site.has_event(job_id, "checkpoint")
    family = family_of(worker_settings.work_dir)
    assert len(alive(family)) == 1
    claimer = Claimer(worker_id=uuid4(), pool=POOL)
    async with site.pool.acquire() as connection, connection.transaction():
        await connection.execute("update jobs set lease_expires_at = now() - interval '1 s' where id = $1", job_id)
        # in one transaction, which holds the row: the daemon cannot renew in between
        reclaimed = await sweep.reclaim(connection, job_id, 1)
        assert reclaimed is not None
        await connection.execute("update jobs set not_before = now() where id = $1", job_id)
        assert await attempts.claim(connection, claimer, job_id, 1, uuid4(), 60) is not None
    before = await site.events(job_id)
    objects = [item.key async for item in site.storage.list_prefix(f"jobs/{job_id}/")]

    async def killed() -> bool:
        return not alive(family)

    await until(killed, "the trainer is dead", 5)
    follower = await site.train()  # the worker is free again
    await site.reaches(follower, "completed")
    assert await site.events(job_id) == before
    assert [item.key async for item in site.storage.list_prefix(f"jobs/{job_id}/")] == objects
    job = await site.job(job_id)
    assert (job.state, job.lease_epoch, job.lease_owner) == ("running", 2, claimer.worker_id)


@pytest.mark.parametrize("damage", ["changed", "deleted"])
async def test_a_checkpoint_that_cannot_be_read_is_lost_and_the_job_starts_before_it(
    site: Site, start_daemon: Start, damage: str
) -> None:
    job_id = await site.train("relapse")
    await start_daemon()
    await site.has_event(job_id, "checkpoint")
    prefix = await site.pool.fetchval("select s3_prefix from checkpoints where job_id = $1", job_id)
    if damage == "changed":
        await site.storage.put_bytes(f"{prefix}/weights", b"x" * 1000)
    else:
        await site.storage.delete([f"{prefix}/weights"])
    await site.has_event(job_id, "interrupted")
    await site.be_due(job_id)
    lost = await site.has_event(job_id, "checkpoint_lost")
    assert lost[0]["step"] == 2
    await site.has_event(job_id, "interrupted", 2)
    await site.be_due(job_id)
    await site.reaches(job_id, "completed")
    assert await steps(site, job_id) == [1, 2, 1, 2, 3, 4]


async def test_a_committed_checkpoint_has_its_manifest_beside_it(site: Site, start_daemon: Start) -> None:
    job_id = await site.train("sleep")
    await start_daemon()
    await site.has_event(job_id, "checkpoint")
    row = await site.pool.fetchrow("select s3_prefix, manifest from checkpoints where job_id = $1", job_id)
    assert msgspec.json.decode(await site.storage.get_bytes(f"{row['s3_prefix']}/{MANIFEST_FILE}")) == row["manifest"]


async def test_a_drain_holds_for_the_name_until_it_is_undone(
    site: Site, processes: Processes, worker_environment: dict[str, str]
) -> None:
    argv, environment = [sys.executable, "-m", "fusion_worker"], worker_environment | {"FUSION_NAME": "gpu-7"}
    by = By(actor="ada", reason="broken fan")

    async def registered(count: int) -> UUID:
        async def there() -> bool:
            return bool(await site.pool.fetchval("select count(*) = $1 from workers", count))

        await until(there, f"{count} workers have registered")
        newest: UUID = await site.pool.fetchval("select id from workers order by started_at desc limit 1")
        return newest

    processes.start("worker", argv, env=environment)
    first = await registered(1)
    async with site.pool.acquire() as connection:
        await drain_worker(connection, by, first, drain=True)
    processes.kill("worker")
    job_id = await site.train()
    processes.start("worker again", argv, env=environment)
    second = await registered(2)
    row = await site.pool.fetchrow("select * from workers where id = $1", second)
    assert row is not None
    assert (row["drain_reason"], row["drain_requested_at"] < row["started_at"]) == ("broken fan", True)
    for _ in range(3):  # reports, between which it could have polled and heard the bell
        seen_at = await site.pool.fetchval("select max(seen_at) from workers")
        await until(lambda before=seen_at: newest_after(site, before), "a report")
    assert (await site.job(job_id)).lease_epoch == 0, "it claimed nothing, not even before its first report"
    async with site.pool.acquire() as connection:
        await drain_worker(connection, by, second, drain=False)
    await site.reaches(job_id, "completed")
    processes.kill("worker again")
    job_id = await site.train()
    processes.start("worker once more", argv, env=environment)
    await site.reaches(job_id, "completed")


async def newest_after(site: Site, moment: datetime) -> bool:
    return bool(await site.pool.fetchval("select max(seen_at) > $1 from workers", moment))
