"""Stop, resume and checkpoints through HTTP: every state, and races with real concurrency."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fusion_core.db import attempts
from fusion_core.db.attempts import WorkerEvent
from fusion_core.db.checkpoints import readable_checkpoints

NewCustomer = Callable[..., Awaitable[Any]]
Problem = Callable[[httpx.Response, str], Any]
STEPS = 2 * 6 * 1000


async def post(customer: Any, job_id: str, action: str, **options: Any) -> Any:
    response = await customer.send("POST", f"/api/jobs/{job_id}/{action}", **options)
    assert response.status_code in (200, 201), response.text
    return response.json()


async def event_types(customer: Any, job_id: str) -> list[str]:
    return [event["type"] for event in (await customer.send("GET", f"/api/jobs/{job_id}/events")).json()]


async def amount(customer: Any, job_id: str) -> float:
    (line,) = (await customer.send("GET", f"/api/ledger?job_id={job_id}")).json()
    return float(line["total_usd"])


async def stopped_at(customer: Any, base_model_id: str, *steps: int) -> tuple[str, list[str]]:
    """A stopped job with checkpoints at these steps, and their ids."""
    job_id = await customer.submit(base_model_id)
    attempt = await customer.claim(job_id)
    async with customer.pool.acquire() as conn:
        await attempts.append_events(conn, attempt, [WorkerEvent(1, "grown", {})])
    checkpoints = [await customer.checkpoint(attempt, step) for step in steps]
    await post(customer, job_id, "stop")
    await customer.obey(attempt)
    return job_id, checkpoints


async def test_every_transition_a_customer_can_ask_for(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    assert (await post(customer, job_id, "resume"))["status"] == "queued"
    for _ in range(2):
        assert (await post(customer, job_id, "stop"))["status"] == "stopped"
    assert (await post(customer, job_id, "resume"))["status"] == "queued"
    attempt = await customer.claim(job_id)
    await customer.checkpoint(attempt, 40)
    asked = await post(customer, job_id, "stop")
    assert (asked["status"], asked["stop_requested"]) == ("provisioning", True)
    assert (await post(customer, job_id, "resume"))["stop_requested"], "a running job goes on to stop"
    await customer.obey(attempt)
    resumed = await post(customer, job_id, "resume")
    assert (resumed["status"], resumed["stop_requested"], resumed["last_checkpoint_step"]) == ("queued", False, 40)
    await customer.complete(await customer.claim(job_id, epoch=1))
    for action in ("stop", "resume", "cancel"):
        assert (await post(customer, job_id, action))["status"] == "completed"
    first = ["queued", "stopped", "resumed", "claimed", "checkpoint", "stopped"]
    assert await event_types(customer, job_id) == [*first, "resumed", "claimed", "completed"]


async def test_a_stopped_job_can_be_cancelled_and_pays_up_to_its_checkpoint(customer: Any, base_model_id: str) -> None:
    job_id, _ = await stopped_at(customer, base_model_id, 1000)
    stopped = (await customer.send("GET", f"/api/jobs/{job_id}")).json()
    cancelled = await post(customer, job_id, "cancel")
    assert cancelled["status"] == "cancelled"
    lines = {line["label"]: line for line in stopped["estimate"]["line_items"]}
    assert await amount(customer, job_id) == pytest.approx(1000 * 256 * 3e-6 + lines["growth"]["amount"])
    assert (await post(customer, job_id, "resume"))["status"] == "cancelled"


async def test_checkpoints_are_listed_newest_first_with_step_time_and_bytes(
    customer: Any, new_customer: NewCustomer, base_model_id: str, problem: Problem
) -> None:
    job_id, checkpoints = await stopped_at(customer, base_model_id, 10, 20, 30)
    path = f"/api/jobs/{job_id}/checkpoints"
    first = await customer.send("GET", f"{path}?limit=2")
    assert [one["step"] for one in first.json()] == [30, 20]
    assert first.json()[0].items() >= {"id": checkpoints[2], "bytes": 10, "status": "ok", "turn_end": False}.items()
    assert [one["step"] for one in (await customer.send("GET", first.links["next"]["url"])).json()] == [10]
    await customer.pool.execute("update checkpoints set state = 'lost' where step = 20")
    assert [one["status"] for one in (await customer.send("GET", path)).json()] == ["ok", "lost", "ok"]
    stranger = await new_customer()
    for method, url in (("GET", path), ("POST", f"/api/jobs/{job_id}/stop"), ("POST", f"/api/jobs/{job_id}/resume")):
        problem(await stranger.send(method, url), "not_found")


async def test_the_newest_checkpoint_named_resumes_the_job_itself(customer: Any, base_model_id: str) -> None:
    job_id, checkpoints = await stopped_at(customer, base_model_id, 10, 20)
    resumed = await post(customer, job_id, "resume", json={"checkpoint_id": checkpoints[1]})
    assert (resumed["id"], resumed["status"]) == (job_id, "queued")


async def test_an_older_checkpoint_makes_a_new_job_with_its_own_price(customer: Any, base_model_id: str) -> None:
    job_id, checkpoints = await stopped_at(customer, base_model_id, 3000, 6000)
    body = {"checkpoint_id": checkpoints[0]}
    response = await customer.send("POST", f"/api/jobs/{job_id}/resume", json=body)
    made = response.json()
    assert (response.status_code, made["status"], made["id"] != job_id) == (201, "queued", True)
    assert (made["resumed_from"], made["start_step"], made["last_checkpoint_step"]) == (job_id, 3000, 3000)
    tokens = (STEPS - 3000) * 256
    assert [(line["label"], line["qty"]) for line in made["estimate"]["line_items"]] == [("training", tokens)]
    again = await customer.send("POST", f"/api/jobs/{job_id}/resume", json=body)
    assert (again.json()["id"], (await customer.send("GET", f"/api/jobs/{job_id}")).json()["status"]) == (
        made["id"],
        "stopped",
    )
    attempt = await customer.claim(made["id"])
    async with customer.pool.acquire() as conn:
        (checkpoint,) = await readable_checkpoints(conn, attempt.job_id)
    assert checkpoint.step == 3000
    assert job_id in checkpoint.s3_prefix
    await customer.complete(attempt)
    await post(customer, job_id, "cancel")
    (line,) = (await customer.send("GET", f"/api/ledger?job_id={made['id']}")).json()
    assert (line["tokens"], line["line_items"]) == (tokens, made["estimate"]["line_items"])


async def test_any_key_of_the_customers_serves_for_every_resumption(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    made = set()
    for _ in range(2):
        job_id, checkpoints = await stopped_at(customer, base_model_id, 3000, 6000)
        body, key = {"checkpoint_id": checkpoints[0]}, {"Idempotency-Key": "k" * 255}
        answers = [await customer.send("POST", f"/api/jobs/{job_id}/resume", json=body, headers=key) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 200]
        made |= {answer.json()["id"] for answer in answers}
    assert len(made) == 2
    await customer.submit(base_model_id, idempotency_key=f"resume-{checkpoints[0]}")
    taken = await customer.send("POST", f"/api/jobs/{job_id}/resume", json=body)
    problem(taken, "idempotency_conflict")


async def test_a_resumed_job_that_is_cancelled_pays_no_step_of_the_first(customer: Any, base_model_id: str) -> None:
    job_id, checkpoints = await stopped_at(customer, base_model_id, 3000, 6000)
    made = await post(customer, job_id, "resume", json={"checkpoint_id": checkpoints[0]})
    attempt = await customer.claim(made["id"])
    await customer.checkpoint(attempt, 3500)
    await post(customer, made["id"], "cancel")
    await customer.obey(attempt)
    assert await amount(customer, made["id"]) == pytest.approx(500 * 256 * 3e-6)


async def test_checkpoints_that_cannot_be_resumed_from(customer: Any, base_model_id: str, problem: Problem) -> None:
    job_id, checkpoints = await stopped_at(customer, base_model_id, 10, 20)
    path = f"/api/jobs/{job_id}/resume"
    await customer.pool.execute("update checkpoints set state = 'lost' where step = 10")
    for checkpoint in (checkpoints[0], str(uuid4())):
        errors = problem(await customer.send("POST", path, json={"checkpoint_id": checkpoint}), "not_found")["errors"]
        assert [error["pointer"] for error in errors] == ["/checkpoint_id"]
    await post(customer, job_id, "cancel")
    problem(await customer.send("POST", path, json={"checkpoint_id": checkpoints[1]}), "not_stopped")
    problem(await customer.send("POST", path, json={"checkpoint": "latest"}), "validation_failed")
    problem(await customer.send("POST", path, content=b"{"), "malformed_body")


async def test_a_repeated_key_neither_stops_nor_resumes_again(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    stop, resume = {"Idempotency-Key": "stop-1"}, {"Idempotency-Key": "resume-1"}
    await post(customer, job_id, "stop", headers=stop)
    await post(customer, job_id, "resume", headers=resume)
    assert (await post(customer, job_id, "stop", headers=stop))["status"] == "queued"
    await post(customer, job_id, "stop")
    assert (await post(customer, job_id, "resume", headers=resume))["status"] == "stopped"


async def test_twenty_resumes_at_once_resume_once(customer: Any, base_model_id: str) -> None:
    job_id, checkpoints = await stopped_at(customer, base_model_id, 10, 20)
    body = {"checkpoint_id": checkpoints[0]}
    made = await asyncio.gather(*(post(customer, job_id, "resume", json=body) for _ in range(20)))
    assert len({job["id"] for job in made}) == 1
    await asyncio.gather(*(post(customer, job_id, "resume") for _ in range(20)))
    assert (await event_types(customer, job_id)).count("resumed") == 1


async def test_stop_cancel_and_completion_at_once_end_in_one_way(customer: Any, base_model_id: str) -> None:
    for _ in range(5):
        job_id = await customer.submit(base_model_id)
        attempt = await customer.claim(job_id)
        wishes = [post(customer, job_id, action) for action in ("stop", "cancel", "stop", "resume")]
        await asyncio.gather(customer.complete(attempt), *wishes, return_exceptions=True)
        job = (await customer.send("GET", f"/api/jobs/{job_id}")).json()
        if job["status"] != "completed":  # the cancel came first: completion was refused, and the worker obeys
            await customer.obey(attempt)
            assert (await customer.send("GET", f"/api/jobs/{job_id}")).json()["status"] == "cancelled"
        ends = [one for one in await event_types(customer, job_id) if one in ("completed", "cancelled", "stopped")]
        assert len(ends) == 1
        await amount(customer, job_id)


async def test_claims_and_stops_at_once_leave_no_job_between(customer: Any, base_model_id: str) -> None:
    for _ in range(5):
        job_id = await customer.submit(base_model_id)
        claimed, _ = await asyncio.gather(
            customer.claim(job_id), post(customer, job_id, "stop"), return_exceptions=True
        )
        job = (await customer.send("GET", f"/api/jobs/{job_id}")).json()
        if isinstance(claimed, BaseException):
            assert job["status"] == "stopped"
        else:
            assert job["stop_requested"]
            await customer.obey(claimed)
            assert (await customer.send("GET", f"/api/jobs/{job_id}")).json()["status"] == "stopped"
