"""Every action: needs a reason, may be repeated, has its line in the audit log. Then what each does to the rows."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from fusion_core.db import attempts, checkpoints
from fusion_core.db.attempts import LeaseLostError
from fusion_core.db.pool import queries
from litestar import Litestar

from tests.integration.db.conftest import World

from .conftest import Ask, check_problem
from .test_access import routes
from .test_views import register

NOBODY = UUID(int=1)
WHY = {"reason": "the GPU burns"}
FORCE = {"reclaim": {"force": True}}
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat()
Target = Callable[[World], Awaitable[str]]


async def running(world: World) -> str:
    return f"/admin/jobs/{(await world.running()).job_id}"


async def expired(world: World) -> str:
    attempt = await world.running()
    await world.expire(attempt.job_id)
    return f"/admin/jobs/{attempt.job_id}"


async def worker(world: World) -> str:
    await register(world)
    return f"/admin/workers/{world.claimer.worker_id}"


async def drained(world: World) -> str:
    path = await worker(world)
    await queries.drain_worker(world.pool, worker_id=world.claimer.worker_id, reason="x")
    return path


async def pool(world: World) -> str:
    await register(world)
    return "/admin/pools/test"


async def cordoned(world: World) -> str:
    await world.pool.execute("insert into pools (name, cordoned_at, cordon_reason) values ('test', now(), 'x')")
    return "/admin/pools/test"


async def nothing(_: World) -> str:
    return "/admin"


async def paused(world: World) -> str:
    await queries.pause_dispatch(world.pool, pool="test", account_id=None, reason="x")
    return "/admin"


# By the end of the route: what it acts on, and the body beside the reason.
ACTIONS: dict[str, tuple[Target, dict[str, Any]]] = {
    "/requeue": (running, {}),
    "/reclaim": (expired, {}),
    "/fail": (running, {}),
    "/priority": (running, {"priority": 7}),
    "/deadline": (running, {"deadline_at": TOMORROW}),
    "/drain": (worker, {}),
    "/undrain": (drained, {}),
    "/cordon": (pool, {}),
    "/uncordon": (cordoned, {}),
    "/dispatch/pause": (nothing, {"pool": "test"}),
    "/dispatch/resume": (paused, {"pool": "test"}),
    "/webhooks/replay": (nothing, {}),
    "/storage/prune": (nothing, {}),
}
REPEATABLE = sorted(ACTIONS.keys() - {"/webhooks/replay", "/storage/prune"})


async def lines(world: World) -> list[Any]:
    """Of the actions; the token that the test acts with has its own."""
    return await world.pool.fetch("select * from audit_log where target_type <> 'operator_token' order by id")


def test_every_action_there_is_is_tried_here(app: Litestar) -> None:
    posts = [path for method, path, _ in routes(app) if method == "POST"]
    assert len(posts) == len(ACTIONS)
    assert [path for path in posts if not any(path.endswith(end) for end in ACTIONS)] == []


@pytest.mark.parametrize("end", ACTIONS)
async def test_every_action_needs_a_reason_and_names_every_bad_field(world: World, ask: Ask, end: str) -> None:
    target, body = ACTIONS[end]
    path = await target(world) + end
    for reason in (None, "", " \n", "x" * 1001, 7):
        wrong = body | ({} if reason is None else {"reason": reason}) | {"rason": "x"}
        pointers = [
            error["pointer"]
            for error in check_problem(await ask("POST", path, json=wrong), "validation_failed")["errors"]
        ]
        assert {"/reason", "/rason"} <= set(pointers)
    check_problem(await ask("POST", path, content=b"{"), "malformed_body")
    assert await lines(world) == []


@pytest.mark.parametrize("end", REPEATABLE)
async def test_an_action_is_logged_once_however_often_it_is_repeated(world: World, ask: Ask, end: str) -> None:
    target, body = ACTIONS[end]
    path = await target(world) + end
    first = await ask("POST", path, json=WHY | body, headers={"x-request-id": "request-12345"})
    assert first.status_code == 200, first.text
    done = first.json()
    assert done["changed"] is True
    assert done["before"] != done["after"]
    for again in [await ask("POST", path, json=WHY | body | {"reason": "again"}) for _ in range(2)]:
        repeated = again.json()
        assert (repeated["changed"], repeated["after"]) == (False, done["after"]), repeated
    (line,) = await lines(world)
    assert (line["actor"], line["reason"], line["request_id"]) == ("ada", WHY["reason"], "request-12345")
    assert (line["action"], line["target_type"], line["target"]) == (
        done["action"],
        done["target_type"],
        done["target"],
    )
    assert (line["before"], line["after"]) == (done["before"], done["after"])
    listed = (await ask("GET", f"/admin/audit?target_type={line['target_type']}&actor=ada")).json()
    assert [one["id"] for one in listed] == [str(line["id"])]
    assert (await ask("GET", "/admin/audit?actor=eve")).json() == []


@pytest.mark.parametrize("path", [f"/admin/jobs/{NOBODY}/fail", f"/admin/workers/{NOBODY}/drain",
                                  "/admin/pools/nowhere/cordon"])  # fmt: skip
async def test_what_is_not_there_is_not_found(ask: Ask, path: str) -> None:
    check_problem(await ask("POST", path, json=WHY), "not_found")


async def test_a_requeued_job_goes_on_elsewhere_and_its_old_worker_has_no_say(world: World, ask: Ask) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 5))
    assert (await ask("POST", f"/admin/jobs/{attempt.job_id}/requeue", json=WHY)).json()["after"]["state"] == "queued"
    async with world.pool.acquire() as conn:
        with pytest.raises(LeaseLostError):
            await attempts.renew(conn, attempt, 20)
        with pytest.raises(LeaseLostError):
            await checkpoints.commit_checkpoint(conn, attempt, world.new_checkpoint(attempt, 6))
        with pytest.raises(LeaseLostError):
            await attempts.complete_training(conn, attempt, world.new_model(attempt), {})
    job = await world.job(attempt.job_id)
    assert (job.retries, job.losses, job.last_checkpoint_step) == (0, 0, 5)
    second = await world.claim(job)
    assert second.epoch == attempt.epoch + 1
    async with world.pool.acquire() as conn:
        with pytest.raises(LeaseLostError):
            await attempts.renew(conn, attempt, 20)
        done = await attempts.complete_training(conn, second, world.new_model(second), {})
    assert done.state == "completed"
    assert len(await world.ledger(job.id)) == 1
    assert "interrupted" in await world.event_types(job.id)


async def test_a_quarantined_job_is_claimable_again(world: World, ask: Ask) -> None:
    job = await world.train()
    await world.pool.execute(
        "update jobs set quarantined_at = now(), losses = 5, not_before = now() + interval '1 h' where id = $1", job.id
    )
    assert (await ask("POST", f"/admin/jobs/{job.id}/requeue", json=WHY)).json()["changed"] is True
    await world.claim(job)
    assert (await world.job(job.id)).losses == 0


async def test_a_pending_cancel_comes_before_the_operators_wish(world: World, ask: Ask) -> None:
    for action in ("requeue", "fail", "reclaim"):
        attempt = await world.running()
        await queries.request_cancel(world.pool, job_id=attempt.job_id)
        body = WHY | FORCE.get(action, {})
        done = (await ask("POST", f"/admin/jobs/{attempt.job_id}/{action}", json=body)).json()
        assert done["after"]["state"] == "cancelled"
        assert (await ask("POST", f"/admin/jobs/{attempt.job_id}/{action}", json=body)).json()["changed"] is False


async def test_a_living_lease_is_reclaimed_by_force_alone(world: World, ask: Ask) -> None:
    path = f"{await running(world)}/reclaim"
    check_problem(await ask("POST", path, json=WHY), "lease_alive")
    assert await lines(world) == []
    after = (await ask("POST", path, json=WHY | {"force": True})).json()["after"]
    assert (after["state"], after["retries"], after["losses"]) == ("queued", 1, 1)


@pytest.mark.parametrize("state", ["queued", "quarantined", "running", "stopped"])
async def test_a_failed_job_tells_its_customer_why_and_costs_nothing(world: World, ask: Ask, state: str) -> None:
    attempt = None
    if state == "running":
        attempt = await world.running()
        job_id = attempt.job_id
    else:
        job_id = (await world.train()).id
    if state == "stopped":
        await queries.stop_queued_job(world.pool, job_id=job_id)
    if state == "quarantined":
        await world.pool.execute("update jobs set quarantined_at = now() where id = $1", job_id)
    done = (await ask("POST", f"/admin/jobs/{job_id}/fail", json=WHY)).json()
    assert done["after"]["state"] == "failed"
    job = await world.job(job_id)
    assert job.error == {"code": "failed_by_operator", "message": WHY["reason"], "errors": []}
    assert await world.ledger(job_id) == [0]
    assert (await world.event_types(job_id))[-1] == "failed"
    topics = await world.pool.fetch("select topic from outbox where job_id = $1 order by seq desc limit 1", job_id)
    assert [row["topic"] for row in topics] == ["job.failed"]
    if attempt is not None:
        async with world.pool.acquire() as conn:
            with pytest.raises(LeaseLostError):
                await attempts.complete_training(conn, attempt, world.new_model(attempt), {})


async def test_a_failed_reading_fails_its_dataset(world: World, ask: Ask) -> None:
    job = await world.ingest()
    await ask("POST", f"/admin/jobs/{job.id}/fail", json=WHY)
    async with world.pool.acquire() as conn:
        dataset = await queries.get_dataset(conn, account_id=job.account_id, dataset_id=job.dataset_id)
    assert (dataset["status"], dataset["error"]["code"]) == ("failed", "failed_by_operator")


async def test_what_has_ended_stays_as_it_is(world: World, ask: Ask) -> None:
    attempt = await world.running()
    async with world.pool.acquire() as conn:
        await attempts.complete_training(conn, attempt, world.new_model(attempt), {})
    for action, body in (("requeue", {}), ("fail", {}), ("reclaim", {"force": True}), ("priority", {"priority": 9}),
                         ("deadline", {"deadline_at": TOMORROW})):  # fmt: skip
        done = (await ask("POST", f"/admin/jobs/{attempt.job_id}/{action}", json=WHY | body)).json()
        assert (done["changed"], done["after"]["state"]) == (False, "completed")
    assert await lines(world) == []


@pytest.mark.parametrize("first", ["completion", "action"])
@pytest.mark.parametrize("action", ["requeue", "fail", "reclaim"])
async def test_of_a_completion_and_an_action_at_the_same_time_one_wins_whole(
    world: World, ask: Ask, action: str, first: str
) -> None:
    """Both wait for the row's lock when it is let go; Postgres serves them in the order in which they came."""
    attempt = await world.running()

    async def complete() -> bool:
        async with world.pool.acquire() as conn:
            try:
                await attempts.complete_training(conn, attempt, world.new_model(attempt), {})
            except LeaseLostError:
                return False
        return True

    async def act() -> Any:
        return await ask("POST", f"/admin/jobs/{attempt.job_id}/{action}", json=WHY | FORCE.get(action, {}))

    async with world.pool.acquire() as holder, holder.transaction():
        await queries.lock_job(holder, job_id=attempt.job_id)
        calls: dict[str, asyncio.Task[Any]] = {}
        for name in (first, "action" if first == "completion" else "completion"):
            calls[name] = asyncio.create_task(complete() if name == "completion" else act())
            await waiting(world, len(calls))
    completed, answer = await calls["completion"], await calls["action"]
    assert completed is (first == "completion")
    assert answer.json()["changed"] is not completed
    job = await world.job(attempt.job_id)
    assert (job.state == "completed") is completed
    assert len(await world.ledger(job.id)) == (1 if completed or action == "fail" else 0)
    assert await world.pool.fetchval("select count(*) from models where job_id = $1", job.id) == int(completed)
    assert len(await world.event_types(job.id)) == 3, "queued, claimed, and one of the two"


async def waiting(world: World, transactions: int) -> None:
    """Until so many wait for a row's lock in this database."""
    async with asyncio.timeout(20):
        while transactions > await world.pool.fetchval(  # noqa: ASYNC110 Postgres sets no event
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.01)


async def test_pauses_stop_claims_of_the_pool_or_the_account_until_resumed(world: World, ask: Ask) -> None:
    job = await world.train()

    async def claimable() -> bool:
        return bool(await world.pool.fetchval("select exists (select from claimable where id = $1)", job.id))

    for where in (
        {"pool": "test"},
        {"account_id": str(job.account_id)},
        {"pool": "test", "account_id": str(job.account_id)},
    ):
        await asyncio.gather(*(ask("POST", "/admin/dispatch/pause", json=WHY | where) for _ in range(4)))
        assert not await claimable()
        (shown,) = (await ask("GET", "/admin/overview")).json()["pauses"]
        assert shown["reason"] == WHY["reason"]
        await ask("POST", "/admin/dispatch/resume", json=WHY | where)
        assert await claimable()
    assert len(await lines(world)) == 6
    check_problem(await ask("POST", "/admin/dispatch/pause", json=WHY), "validation_failed")
    check_problem(await ask("POST", "/admin/dispatch/pause", json=WHY | {"account_id": str(uuid4())}), "not_found")


async def test_a_deadline_is_in_the_future_and_has_an_offset(world: World, ask: Ask) -> None:
    path = f"{await running(world)}/deadline"
    for wrong in ("2020-01-01T00:00:00Z", TOMORROW[:-6], "tomorrow", 7):
        check_problem(await ask("POST", path, json=WHY | {"deadline_at": wrong}), "validation_failed")
    assert (await ask("POST", path, json=WHY | {"deadline_at": TOMORROW})).json()["changed"] is True
    assert (await ask("POST", path, json=WHY | {"deadline_at": None})).json()["after"]["deadline_at"] is None


async def test_the_audit_log_is_only_ever_appended_to(world: World, ask: Ask) -> None:
    await ask("POST", f"{await running(world)}/priority", json=WHY | {"priority": 7})
    for tampering in ("update audit_log set reason = 'x'", "delete from audit_log"):
        with pytest.raises(Exception, match="only ever appended to"):
            await world.pool.execute(tampering)
