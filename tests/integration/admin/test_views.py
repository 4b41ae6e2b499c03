"""What a viewer sees, over rows that real functions made."""

from typing import Any
from uuid import uuid4

import pytest
from fusion_core.db import attempts, checkpoints, webhooks
from fusion_core.db.pool import queries

from tests.integration.db.conftest import World

from .conftest import Ask, check_problem


async def seen(ask: Ask, path: str) -> Any:
    answer = await ask("GET", path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def register(world: World, name: str = "w1") -> None:
    await queries.register_worker(
        world.pool,
        id=world.claimer.worker_id,
        name=name,
        pool="test",
        spec_version=1,
        capabilities=[],
        version="1.2.3",
        gpus=1,
    )


async def test_the_overview_counts_what_there_is(world: World, ask: Ask) -> None:
    await register(world)
    await world.train()
    attempt = await world.running()
    await world.expire(attempt.job_id)
    shown = await seen(ask, "/admin/overview")
    assert shown["jobs"] == {"queued": 1, "running": 1}
    assert (shown["expired_leases"], shown["quarantined"], shown["pauses"]) == (1, 0, [])
    assert shown["workers"] == {"idle": 1}


async def test_a_queued_job_says_all_that_it_waits_for(world: World, ask: Ask) -> None:
    job = await world.train()

    async def waits() -> list[str]:
        found: list[str] = (await seen(ask, f"/admin/jobs/{job.id}"))["waits_for"]
        return found

    assert await waits() == ["no_worker"]
    await register(world)
    assert await waits() == []
    await world.pool.execute("insert into dispatch_pauses (pool, reason) values ('test', 'x')")
    await world.pool.execute("insert into pools (name, cordoned_at, cordon_reason) values ('test', now(), 'x')")
    await world.pool.execute("update accounts set max_running_jobs = 0 where id = $1", job.account_id)
    await world.pool.execute(
        "update jobs set not_before = now() + interval '1 h', quarantined_at = now() where id = $1", job.id
    )
    assert await waits() == ["quarantined", "pool_paused", "pool_cordoned", "account_limit", "backing_off"]


async def test_jobs_are_filtered_and_paged(world: World, ask: Ask) -> None:
    queued, running = await world.train(), await world.running()
    ingest = await world.ingest()
    listed = await seen(ask, "/admin/jobs")
    assert [job["id"] for job in listed] == [str(ingest.id), str(running.job_id), str(queued.id)]
    assert [job["id"] for job in await seen(ask, "/admin/jobs?state=running")] == [str(running.job_id)]
    assert [job["id"] for job in await seen(ask, f"/admin/jobs?account={queued.account_id}")] == [str(queued.id)]
    assert await seen(ask, "/admin/jobs?pool=other") == []
    first = await ask("GET", "/admin/jobs?limit=2&pool=test")
    link = first.headers["link"].removeprefix("<").partition(">")[0]
    assert [job["id"] for job in await seen(ask, link)] == [str(queued.id)]
    check_problem(await ask("GET", "/admin/jobs?state=lost"), "validation_failed")
    check_problem(await ask("GET", "/admin/jobs?limit=1000"), "validation_failed")


async def test_a_job_shows_its_attempts_events_and_checkpoints(world: World, ask: Ask) -> None:
    await register(world)
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 5))
        await attempts.release(conn, attempt)
    second = await world.claim(await world.job(attempt.job_id))
    shown = await seen(ask, f"/admin/jobs/{attempt.job_id}")
    assert (shown["state"], shown["worker_name"], shown["attempt_id"]) == ("running", "w1", str(second.attempt_id))
    assert [one["type"] for one in shown["attempts"]] == ["claimed", "interrupted", "claimed"]
    assert [one["type"] for one in shown["events"]] == ["claimed", "interrupted", "checkpoint", "claimed", "queued"]
    assert [(one["step"], one["bytes"]) for one in shown["checkpoints"]] == [(5, 10)]
    check_problem(await ask("GET", f"/admin/jobs/{uuid4()}"), "not_found")


async def test_leases_and_workers(world: World, ask: Ask) -> None:
    await register(world)
    attempt = await world.running()
    (lease,) = await seen(ask, "/admin/leases")
    assert (lease["id"], lease["worker_name"], lease["expired"]) == (str(attempt.job_id), "w1", False)
    assert lease["age_s"] >= 0
    await world.expire(attempt.job_id)
    assert (await seen(ask, "/admin/leases?pool=test"))[0]["expired"] is True
    (worker,) = await seen(ask, "/admin/workers?state=idle")
    assert (worker["name"], worker["version"], worker["gpus"], worker["failures"]) == ("w1", "1.2.3", 1, 0)
    assert await seen(ask, "/admin/workers?state=gone") == []


async def test_queues_have_depth_age_wait_and_demand(world: World, ask: Ask) -> None:
    job = await world.train()
    (queue,) = await seen(ask, "/admin/queues")
    assert (queue["name"], queue["queued"], queue["claimable"], queue["demand"]) == ("test", 1, 1, 1)
    assert queue["expected_wait_s"] is None, "nobody serves it"
    await register(world)
    attempt = await world.claim(job)
    async with world.pool.acquire() as conn:
        await attempts.complete_training(conn, attempt, world.new_model(attempt), {})
    await world.pool.execute("update jobs set started_at = finished_at - interval '100 s' where id = $1", job.id)
    await world.train()
    await world.train()
    (queue,) = await seen(ask, "/admin/queues")
    assert (queue["queued"], queue["idle"]) == (2, 1)
    assert queue["expected_wait_s"] == pytest.approx(200), "two go first: one at once on the idle worker"
    await queries.drain_worker(world.pool, worker_id=world.claimer.worker_id, reason="x")
    (queue,) = await seen(ask, "/admin/queues")
    assert (queue["idle"], queue["busy"], queue["draining"]) == (0, 0, 1), "nor does it say so to customers"
    assert queue["expected_wait_s"] is None, "a drained worker serves nobody"
    await world.pool.execute("insert into pools (name, cordoned_at, cordon_reason) values ('test', now(), 'x')")
    (queue,) = await seen(ask, "/admin/queues")
    assert (queue["cordon_reason"], queue["expected_wait_s"]) == ("x", None)


async def test_webhooks_that_are_behind_show_no_more_than_their_host(world: World, ask: Ask) -> None:
    account_id = await world.account()
    async with world.pool.acquire() as conn:
        hook = await webhooks.create_endpoint(
            conn, account_id, url="https://x.example/secret", event_types=["job.completed"], description=""
        )
        await webhooks.add_test(conn, account_id, hook["id"])
    (behind,) = await seen(ask, "/admin/webhooks")
    assert (behind["host"], behind["pending"], behind["failed"]) == ("x.example", 1, 0)
    assert "secret" not in str(behind)


async def test_storage_by_kind_is_what_rows_name(world: World, ask: Ask) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 5))
        await attempts.complete_training(conn, attempt, world.new_model(attempt), {})
    ingest = await world.ingest()
    reading = await world.claim(ingest)
    async with world.pool.acquire() as conn:
        await attempts.complete_ingest(conn, reading, [world.new_shard(reading)], rows=3, heldout_rows=1)
    kinds = {one["kind"]: (one["items"], one["bytes"]) for one in await seen(ask, "/admin/storage")}
    assert kinds["checkpoints"] == (1, 10)
    assert kinds["models"] == (1, 10)
    assert kinds["base_models"] == (1, 1)
    assert kinds["shards"] == (1, 9)
    assert kinds["uploads"] == (0, 0)


async def test_the_document_describes_every_operation(ask: Ask) -> None:
    paths = (await seen(ask, "/admin/openapi.json"))["paths"]
    assert {"/admin/overview", "/admin/jobs/{job_id}", "/admin/audit"} <= set(paths)
