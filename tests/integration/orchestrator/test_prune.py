"""Pruning over real rows and real objects: what no row names goes, everything else stays."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from fusion_core import s3_keys
from fusion_core.db import attempts, checkpoints
from fusion_core.db.attempts import NewShard
from fusion_core.db.checkpoints import NewCheckpoint
from fusion_core.db.pool import queries
from fusion_core.storage import ListedObject, Storage
from fusion_core.trainer_protocol import FileEntry, Manifest
from fusion_orchestrator.base_model_import import IMPORTING
from fusion_orchestrator.prune import Pruner, PruneReport

AT_ONCE = timedelta(seconds=-60)  # objects of this second count as old


async def keys(storage: Storage) -> set[str]:
    return {item.key async for item in storage.list_prefix("")}


async def put(storage: Storage, *names: str) -> set[str]:
    for name in names:
        await storage.put_bytes(name, b"x")
    return set(names)


async def prune(world: Any, storage: Storage, *, min_age: timedelta = AT_ONCE, dry_run: bool = False) -> PruneReport:
    return await Pruner(world.pool, storage, model_days=7, min_age=min_age, dry_run=dry_run).run()


async def test_a_live_attempts_objects_stay_and_a_dead_ones_go_unless_a_row_names_them(
    world: Any, storage: Storage
) -> None:
    attempt = await world.claim(await world.queue_job())
    prefix = s3_keys.attempt(attempt.job_id, attempt.epoch, attempt.attempt_id)
    checkpoint = s3_keys.checkpoint(prefix, 10)
    kept = await put(storage, f"{checkpoint}/manifest.json", f"{checkpoint}/state.safetensors")
    torn = await put(storage, f"{s3_keys.checkpoint(prefix, 20)}/state.safetensors", f"{prefix}/export/config.json")
    new = NewCheckpoint(step=10, turn_end=False, s3_prefix=checkpoint, manifest=Manifest(()), format_version=1)
    async with world.pool.acquire() as conn:
        await checkpoints.commit_checkpoint(conn, attempt, new)
    assert (await prune(world, storage)).attempt_objects == 0
    await world.lose(attempt)
    assert (await prune(world, storage)).attempt_objects == len(torn)
    assert await keys(storage) == kept


async def test_a_row_committed_after_the_listing_still_protects(world: Any, storage: Storage) -> None:
    attempt = await world.claim(await world.queue_job())
    prefix = s3_keys.checkpoint(s3_keys.attempt(attempt.job_id, attempt.epoch, attempt.attempt_id), 10)
    kept = await put(storage, f"{prefix}/manifest.json")
    list_now = storage.list_prefix

    async def list_then_commit(listed: str) -> AsyncIterator[ListedObject]:
        async for item in list_now(listed):
            yield item
        if listed == "jobs/":
            new = NewCheckpoint(step=10, turn_end=False, s3_prefix=prefix, manifest=Manifest(()), format_version=1)
            async with world.pool.acquire() as conn:
                await checkpoints.commit_checkpoint(conn, attempt, new)
            await world.lose(attempt)

    storage.list_prefix = list_then_commit  # type: ignore[method-assign]
    assert (await prune(world, storage)).attempt_objects == 0
    storage.list_prefix = list_now  # type: ignore[method-assign]
    assert await keys(storage) == kept


async def test_a_second_attempt_does_not_shield_the_first(world: Any, storage: Storage) -> None:
    dead = await world.claim(await world.queue_job())
    job = await world.lose(dead)
    live = await world.claim(job)
    mine = await put(storage, f"{s3_keys.attempt(job.id, live.epoch, live.attempt_id)}/export/a")
    await put(storage, f"{s3_keys.attempt(job.id, dead.epoch, dead.attempt_id)}/export/a")
    await prune(world, storage)
    assert await keys(storage) == mine


async def test_shards_of_a_ready_dataset_stay(world: Any, storage: Storage) -> None:
    attempt = await world.claim(await world.queue_job())
    folder = s3_keys.shards(s3_keys.attempt(attempt.job_id, attempt.epoch, attempt.attempt_id))
    kept = await put(storage, f"{folder}/train-00000.jsonl")
    await put(storage, f"{folder}/train-00001.jsonl")
    file = FileEntry("train-00000.jsonl", 1, "0" * 64)
    shard = NewShard(split="train", ordinal=0, s3_key=f"{folder}/{file.rel}", rows=3, file=file)
    async with world.pool.acquire() as conn:
        await attempts.complete_ingest(conn, attempt, [shard], rows=3, heldout_rows=1)
    await prune(world, storage)
    assert await keys(storage) == kept


async def test_young_objects_foreign_names_and_unknown_jobs_stay(world: Any, storage: Storage) -> None:
    attempt = await world.claim(await world.queue_job())
    foreign = await put(storage, f"jobs/{uuid4()}/1-{uuid4()}/export/a", "jobs/readme.txt", "backup/x", "tmp/notes.txt")
    report = await prune(world, storage)
    assert report.unknown == 3
    prefix = s3_keys.attempt(attempt.job_id, attempt.epoch, uuid4())
    young = await put(storage, f"{prefix}/export/a")
    assert (await prune(world, storage, min_age=timedelta(days=1))).attempt_objects == 0
    assert await keys(storage) == foreign | young


async def test_a_dry_run_only_counts(world: Any, storage: Storage) -> None:
    attempt = await world.claim(await world.queue_job())
    garbage = await put(storage, f"{s3_keys.attempt(attempt.job_id, attempt.epoch, uuid4())}/export/a")
    assert (await prune(world, storage, dry_run=True)).attempt_objects == 1
    assert await keys(storage) == garbage


@pytest.mark.parametrize(
    ("expires_s", "taken", "status", "object_stays"),
    [
        (3600, False, "", True),
        (-1, False, "", False),
        (-1, True, "validating", True),
        (-1, True, "failed", False),
    ],
)
async def test_uploads(
    world: Any, storage: Storage, expires_s: int, taken: bool, status: str, object_stays: bool
) -> None:
    account_id, upload_id = await world.account(), uuid4()
    key = s3_keys.upload(account_id, upload_id, "a.jsonl")
    await queries.insert_upload(
        world.pool, id=upload_id, account_id=account_id, filename="a.jsonl", content_type="x", s3_key=key,
        size=None, part_size=None, multipart_id=None, expires_s=expires_s,
    )  # fmt: skip
    await put(storage, key)
    if taken:
        dataset = await queries.insert_dataset(world.pool, account_id=account_id, name="data")
        await queries.insert_dataset_upload(
            world.pool, upload_id=upload_id, dataset_id=dataset["id"], ordinal=0, size=1, etag="x"
        )
        if status == "failed":
            await queries.dataset_failed(world.pool, dataset_id=dataset["id"], error={"code": "invalid_row"})
    await prune(world, storage)
    assert (await keys(storage) == {key}) == object_stays


async def test_only_broken_imports_go(world: Any, storage: Storage) -> None:
    whole, broken = s3_keys.base_model(uuid4()), s3_keys.base_model(uuid4())
    kept = await put(storage, f"{whole}/config.json")
    await put(storage, f"{broken}/{IMPORTING}", f"{broken}/config.json")
    assert (await prune(world, storage)).base_model_objects == 2
    assert await keys(storage) == kept
