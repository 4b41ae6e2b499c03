"""Expand, then contract: the previous release works on the new schema, as it does while a rollout is under way.

`previous_release/` holds the SQL files of that release as they were; a release replaces them by its own, with
`cp libs/fusion_core/db/sql/*.sql tests/integration/db/previous_release/`. A migration may only take away what neither
of the two uses.
"""

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiosql
import asyncpg
import pytest
from fusion_core import s3_keys
from fusion_core.db.attempts import Attempt
from fusion_core.db.pool import Connection
from fusion_core.job_spec import SPEC_VERSION
from fusion_core.trainer_protocol import FileEntry, Manifest

OLD: Any = aiosql.from_path(Path(__file__).parent / "previous_release", "asyncpg")
NAMES = [name for name in OLD.available_queries if not name.endswith("_cursor")]
WORKER = {"pool": "test", "spec_version": SPEC_VERSION, "capabilities": []}


async def test_every_query_of_the_previous_release_prepares(world: Any) -> None:
    faults = []
    async with world.pool.acquire() as conn:
        for name in NAMES:
            try:
                await conn.prepare(getattr(OLD, name).sql)
            except asyncpg.PostgresError as error:
                faults.append(f"{name}: {error}")
    assert len(NAMES) > 100
    assert faults == []


@pytest.fixture
async def conn(world: Any) -> Any:
    async with world.pool.acquire() as connection:
        yield connection


async def submit(world: Any, conn: Connection) -> Any:
    new = await world.new_train()
    return await OLD.insert_job(
        conn, account_id=new.account_id, type="train", idempotency_key=new.idempotency_key, request_sha256=b"\0" * 32,
        spec_version=SPEC_VERSION, spec=new.spec, base_model_id=new.base_model_id, source_model_id=None,
        dataset_id=new.dataset_id, price_version=1, estimate=new.estimate, pool="test", requirements=[], priority=0,
        labels={}, description=None,
    )  # fmt: skip


async def start(conn: Connection, job: Any) -> dict[str, Any]:
    """Register a worker and claim; answers the fence."""
    worker_id, attempt_id = uuid4(), uuid4()
    await OLD.register_worker(conn, id=worker_id, name="old", version="0", gpus=1, **WORKER)
    head = await OLD.next_claimable(conn, **WORKER)
    assert head["id"] == job["id"]
    claimed = await OLD.claim_job(
        conn,
        worker_id=worker_id,
        attempt_id=attempt_id,
        ttl_s=20,
        job_id=job["id"],
        epoch=head["lease_epoch"],
        **WORKER,
    )
    await OLD.append_event(conn, job_id=job["id"], type="claimed", data={})
    await OLD.worker_seen(conn, id=worker_id, state="busy", job_id=job["id"])
    return {"job_id": job["id"], "epoch": claimed["lease_epoch"], "attempt_id": attempt_id}


async def progress(conn: Connection, fence: dict[str, Any]) -> None:
    assert await OLD.renew_lease(conn, ttl_s=20, **fence) is not None
    job_id, attempt_id = fence["job_id"], fence["attempt_id"]
    async with conn.transaction():
        assert await OLD.lock_attempt(conn, **fence) is not None
        await OLD.append_attempt_events(
            conn, numbers=[1], types=["metrics"], payloads=['{"step": 1}'], phase="training", job_id=job_id,
            attempt_id=attempt_id,
        )  # fmt: skip
        prefix = s3_keys.checkpoint(s3_keys.attempt(job_id, fence["epoch"], attempt_id), 5)
        await OLD.insert_checkpoint(
            conn, **fence, step=5, format_version=1, turn_end=False, s3_prefix=prefix, manifest=Manifest(())
        )
        await OLD.advance_checkpoint(conn, step=5, job_id=job_id)


async def complete(conn: Connection, job: Any, fence: dict[str, Any]) -> UUID:
    manifest = Manifest((FileEntry("config.json", 1, "0" * 64),))
    async with conn.transaction():
        model_id: UUID = await OLD.new_id(conn)
        await OLD.insert_model(
            conn, id=model_id, account_id=job["account_id"], job_id=job["id"], name="grown", params=1,
            base_model_id=job["base_model_id"], parent_model_id=None, config={}, s3_prefix=str(model_id),
            manifest=manifest,
        )  # fmt: skip
        assert await OLD.complete_job(conn, output_model_id=model_id, result={}, **fence) is not None
        await OLD.insert_ledger(
            conn, account_id=job["account_id"], job_id=job["id"], amount_microusd=1, line_items=[], tokens=1,
            price_version=1,
        )  # fmt: skip
        seq = await OLD.append_event(conn, job_id=job["id"], type="completed", data={})
        await OLD.insert_outbox(conn, job_id=job["id"], seq=seq, topic="job.completed")
    return model_id


async def test_the_previous_release_takes_a_job_from_submission_to_its_model_and_deletes_it(
    world: Any, conn: Connection
) -> None:
    job = await submit(world, conn)
    fence = await start(conn, job)
    await progress(conn, fence)
    model_id = await complete(conn, job, fence)
    assert await OLD.get_model(conn, account_id=job["account_id"], model_id=model_id) is not None
    await OLD.delete_model(conn, model_id=model_id)
    assert await OLD.get_model(conn, account_id=job["account_id"], model_id=model_id) is None
    assert await OLD.get_job(conn, account_id=job["account_id"], job_id=job["id"]) is not None


@pytest.mark.parametrize("end", ["drain", "crash", "lost", "cancel", "stop"])
async def test_the_previous_release_interrupts_and_ends_jobs(world: Any, conn: Connection, end: str) -> None:
    job = await submit(world, conn)
    fence = await start(conn, job)
    await progress(conn, fence)
    if end == "drain":
        assert await OLD.release_job(conn, **fence) is not None
    elif end in ("crash", "lost"):
        assert await OLD.requeue_interrupted_job(conn, interruption=end, loss_limit=5, **fence) is not None
    elif end == "cancel":
        await OLD.request_cancel(conn, job_id=job["id"])
        assert await OLD.cancel_running_job(conn, **fence) is not None
    else:
        await OLD.request_stop(conn, job_id=job["id"])
        assert await OLD.stop_running_job(conn, **fence) is not None
        assert await OLD.resume_job(conn, job_id=job["id"]) is not None
    after = await OLD.lock_job(conn, job_id=job["id"])
    assert after["state"] == ("cancelled" if end == "cancel" else "queued")
    if after["state"] == "queued":
        assert await OLD.cancel_idle_job(conn, job_id=job["id"]) is not None
    assert await OLD.renew_lease(conn, ttl_s=20, **fence) is None


async def test_both_releases_share_the_work(world: Any, conn: Connection) -> None:
    """What one has claimed the other reclaims; what one submitted the other claims."""
    job = await submit(world, conn)
    attempt = await world.claim(await world.job(job["id"]))
    await world.expire(job["id"])
    assert await OLD.begin_sweep(conn, ttl_s=20, gap_s=10) in (True, False)
    expired = [row["id"] async for row in OLD.expired_leases(conn, limit=10)]
    assert expired == [attempt.job_id]
    assert await OLD.lock_expired(conn, job_id=attempt.job_id, epoch=attempt.epoch) is not None
    await world.be_due(await requeued(conn, attempt))
    assert [row["id"] async for row in OLD.due_rings(conn, depth=9, again_s=10)] == [job["id"]]


async def requeued(conn: Connection, attempt: Attempt) -> UUID:
    lost = await OLD.requeue_interrupted_job(conn, interruption="lost", loss_limit=5, **attempt.fence)
    job_id: UUID = lost["id"]
    return job_id
