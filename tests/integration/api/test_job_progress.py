"""What GET shows of a job on its way: its place in the queue, its progress and cost, its curve, its result."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt, WorkerEvent
from fusion_core.db.pool import queries
from fusion_core.db.waiting import SENTENCES, expected_wait_s
from hypothesis import given
from hypothesis import strategies as st

NewCustomer = Callable[..., Awaitable[Any]]
Problem = Callable[[httpx.Response, str], Any]
POINT = {
    "ts": "2026-06-04T02:30:00Z", "cycle": 1, "phase": "train", "lr": 1e-4, "throughput": 4.0, "tokens_per_s": 1024.0,
    "grad_norm": 1.0, "vram_gb": 0.0,
}  # fmt: skip


async def look(customer: Any, job_id: str) -> Any:
    return (await customer.send("GET", f"/api/jobs/{job_id}")).json()


async def report(customer: Any, attempt: Attempt, losses: dict[int, float], first: int = 1) -> None:
    """Metrics points of an attempt at 4 steps a second, as local events from number `first`."""
    events = [
        WorkerEvent(number, "metrics", POINT | {"step": step, "loss": loss})
        for number, (step, loss) in enumerate(losses.items(), first)
    ]
    async with customer.pool.acquire() as conn:
        await attempts.append_events(conn, attempt, events, "training")


async def worker(customer: Any, *, gpus: int = 1) -> UUID:
    worker_id = uuid4()
    await queries.register_worker(
        customer.pool,
        id=worker_id,
        name="worker",
        pool="h100x1",
        spec_version=1,
        capabilities=[],
        version="1",
        gpus=gpus,
    )
    return worker_id


async def busy(customer: Any, worker_id: UUID) -> None:
    await queries.worker_seen(customer.pool, id=worker_id, state="busy", job_id=None)


async def test_a_queued_job_shows_its_place_and_when_it_may_start(
    customer: Any, new_customer: NewCustomer, base_model_id: str
) -> None:
    stranger = await new_customer()
    first, second = await stranger.submit(base_model_id), await customer.submit(base_model_id)
    place = (await look(stranger, first))["queue"]
    assert (place["position"], place["expected_start_at"]) == (1, None)
    assert [why["reason"] for why in place["waits_for"]] == ["no_worker"]
    assert (await look(customer, second))["queue"]["position"] == 2
    await customer.pool.execute("update jobs set priority = 1 where id = $1", UUID(second))
    assert (await look(customer, second))["queue"]["position"] == 1
    workers = [await worker(customer) for _ in range(2)]
    now = datetime.now(UTC)
    start = datetime.fromisoformat((await look(customer, second))["queue"]["expected_start_at"])
    assert abs(start - now) < timedelta(seconds=10), "a worker is idle"
    for worker_id in workers:
        await busy(customer, worker_id)
    place = (await look(stranger, first))["queue"]
    assert (place["position"], place["expected_start_at"]) == (2, None), "nothing has ended yet"
    (why,) = place["waits_for"]
    assert why == {"reason": "behind", "message": SENTENCES["behind"], "until": None}
    ended = await customer.submit(base_model_id)
    await customer.complete(await customer.claim(ended))
    await customer.pool.execute("alter table jobs disable trigger all")
    await customer.pool.execute(
        "update jobs set started_at = finished_at - interval '1 hour' where state = 'completed'"
    )
    start = datetime.fromisoformat((await look(stranger, first))["queue"]["expected_start_at"])
    assert abs(start - now - timedelta(hours=1)) < timedelta(seconds=10), "two places, two workers, an hour a job"
    await customer.pool.execute("insert into dispatch_pauses (pool, reason) values ('h100x1', 'maintenance')")
    assert (await look(stranger, first))["queue"]["expected_start_at"] is None
    assert (await look(customer, ended))["queue"] is None


@given(st.integers(1, 1001), st.integers(0, 50), st.integers(0, 50), st.floats(1, 1e6))
def test_an_earlier_place_and_more_workers_never_wait_longer(place: int, idle: int, busy: int, mean_s: float) -> None:
    wait = expected_wait_s(place, idle, idle + busy, mean_s)
    if idle + busy == 0:
        assert wait is None
        return
    assert wait is not None
    later, helped = expected_wait_s(place + 1, idle, idle + busy, mean_s), expected_wait_s(
        place, idle, idle + busy + 1, mean_s
    )  # fmt: skip
    assert later is not None
    assert helped is not None
    assert (wait == 0) == (place <= idle)
    assert helped <= wait <= later


async def test_progress_cost_and_time_left_while_running(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id, hyperparams={"train_steps": 1000})
    queued = await look(customer, job_id)
    assert (queued["progress"]["step"], queued["progress"]["cost_so_far_usd"]) == (0, 0.0)
    attempt = await customer.claim(job_id)
    async with customer.pool.acquire() as conn:
        await attempts.append_events(conn, attempt, [WorkerEvent(1, "grown", {})])
    await report(customer, attempt, {100: 3.0, 200: 2.5}, first=2)
    await customer.checkpoint(attempt, 150)
    growth = next(line["amount"] for line in queued["estimate"]["line_items"] if line["label"] == "growth")
    running = (await look(customer, job_id))["progress"]
    owed = pytest.approx(growth + 150 * 256 * 3e-6)
    assert running == {
        "step": 200,
        "total_steps": 1000,
        "percent": 20.0,
        "tokens": 200 * 256,
        "seconds_left": 200.0,
        "cost_so_far_usd": owed,
    }
    async with customer.pool.acquire() as conn:
        await attempts.release(conn, attempt)
    interrupted = (await look(customer, job_id))["progress"]
    assert (interrupted["step"], interrupted["seconds_left"]) == (150, None), "it goes on from the checkpoint"
    again = await customer.claim(job_id, epoch=1)
    assert (await look(customer, job_id))["progress"]["step"] == 150, "what the first attempt lost does not count"
    await report(customer, again, {160: 2.4})
    assert (await look(customer, job_id))["progress"]["step"] == 160
    await customer.complete(again)
    done = await look(customer, job_id)
    assert done["progress"]["cost_so_far_usd"] == done["estimate"]["total_usd"]


async def test_points_thin_the_curve_out_and_keep_its_extremes(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    job_id = await customer.submit(base_model_id)
    attempt = await customer.claim(job_id)
    losses = {step: 3.0 - step / 1000 for step in range(3, 1003)} | {501: 99.0, 702: 0.01}
    await report(customer, attempt, losses)
    path = f"/api/jobs/{job_id}/metrics"
    whole = (await customer.send("GET", path)).json()
    assert (whole["count"], whole["latest_step"]) == (1000, 1002)
    for points in (4, 5, 10, 101):
        page = (await customer.send("GET", f"{path}?points={points}")).json()
        steps = [point["step"] for point in page["points"]]
        assert len(steps) == page["count"] <= points
        assert steps == sorted(set(steps))
        assert {3, 501, 702, 1002} <= set(steps)
        assert all(point in whole["points"] for point in page["points"])
    rest = (await customer.send("GET", f"{path}?since_step=990&points=100")).json()
    assert [point["step"] for point in rest["points"]] == list(range(991, 1003))
    assert (await customer.send("GET", f"{path}?since_step=5000&points=10")).json()["points"] == []
    for points in (3, 2001):
        problem(await customer.send("GET", f"{path}?points={points}"), "validation_failed")


async def test_the_result_has_the_gpu_minutes_of_every_attempt(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    two_gpus = await worker(customer, gpus=2)
    for epoch in range(2):
        attempt = await customer.claim(job_id, epoch)
        await customer.pool.execute(
            "update jobs set claimed_at = now() - interval '90 s', gpus = (select gpus from workers where id = $1)",
            two_gpus,
        )
        if epoch == 0:
            async with customer.pool.acquire() as conn:
                await attempts.release(conn, attempt)
    await customer.complete(attempt)
    result = (await customer.send("GET", f"/api/jobs/{job_id}/result")).json()
    assert result["gpu_minutes"] == pytest.approx(6.0, abs=0.1)
    (line,) = (await customer.send("GET", f"/api/ledger?job_id={job_id}")).json()
    assert line["gpu_minutes"] == result["gpu_minutes"]
