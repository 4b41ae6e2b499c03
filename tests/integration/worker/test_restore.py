"""Backup and restore as docs/kubernetes.md says: a dump of the database, a copy of the bucket, and a job goes on."""

import asyncio
from pathlib import Path
from uuid import uuid4

import msgspec
from fusion_core.db.pool import connect_pool
from fusion_core.db.sweep import reclaim_expired
from fusion_core.settings import CommonSettings
from fusion_core.storage import Storage
from fusion_local.stack import Stack, create_database, postgres_bin
from fusion_worker.daemon import Daemon

from .conftest import Site, Start


async def run(command: str, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(str(postgres_bin() / command), *arguments)
    assert await asyncio.wait_for(process.wait(), 60) == 0


async def copy_bucket(source: Storage, target: Storage) -> None:
    await target.ensure_bucket()
    async for item in source.list_prefix(""):
        await target.put_bytes(item.key, await source.get_bytes(item.key))


async def test_a_job_resumes_on_a_restored_database_and_bucket(
    site: Site, start_daemon: Start, stack: Stack, common_settings: CommonSettings, database_url: str, tmp_path: Path
) -> None:
    job_id = await site.train("sleep")
    lost = await start_daemon()
    await site.has_event(job_id, "checkpoint")

    dump, name = str(tmp_path / "fusion.dump"), f"restored_{uuid4().hex[:8]}"
    await run("pg_dump", "--format=custom", f"--file={dump}", database_url)
    there = msgspec.structs.replace(common_settings, s3_bucket=name.replace("_", "-"))
    async with Storage(common_settings) as bucket, Storage(there) as copy:
        await copy_bucket(bucket, copy)
    lost.drain()  # what happens there after the backup is not in it

    await create_database(stack.database_url("postgres"), name)
    restored_url = stack.database_url(name)
    await run("pg_restore", f"--dbname={restored_url}", "--exit-on-error", "--no-owner", dump)
    pool = await connect_pool(restored_url, application_name="test", max_size=5)
    async with pool, Storage(there) as storage:
        restored = Site(pool, storage)
        before = await restored.job(job_id)
        assert (before.state, before.last_checkpoint_step) == ("running", 2), "as it was when the dump was made"
        # Its worker is not there: the lease runs out, as after any loss, and another takes the job from its checkpoint.
        await lose_lease(restored)
        daemon: Daemon = await start_daemon(
            database_url=restored_url, s3_bucket=there.s3_bucket, work_dir=str(tmp_path / "elsewhere")
        )
        job = await restored.reaches(job_id, "completed")
        assert (job.retries, job.output_model_id is not None) == (1, True)
        steps = [data["step"] for kind, data in await restored.events(job_id) if kind == "metrics"]
        assert steps == [1, 2, 3, 4], "no step was done twice"
        daemon.drain()


async def lose_lease(site: Site) -> None:
    """A sweep after the lease has run out."""
    await site.pool.execute("update jobs set lease_expires_at = now() - interval '1 s' where state = 'running'")
    async with site.pool.acquire() as connection:
        await reclaim_expired(connection)
