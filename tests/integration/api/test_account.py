"""Overview, usage, ledger, spend limits, and keys that expire."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

PRICE = 1  # dollars; any limit below the price of one job


async def finished_job(customer: Any, base: str) -> tuple[str, float]:
    """(id, what it cost) of a job that a worker with one GPU ran for 90 seconds."""
    job_id = await customer.submit(base)
    attempt = await customer.claim(job_id)
    await customer.pool.execute(
        "update jobs set gpus = 1, claimed_at = now() - interval '90 s', lease_expires_at = now() + interval '20 s'"
        " where id = $1",
        job_id,
    )
    await customer.complete(attempt)
    detail = (await customer.send("GET", f"/api/jobs/{job_id}")).json()
    return job_id, detail["estimate"]["total_usd"]


async def test_overview_and_usage_have_the_fields_of_the_manual(customer: Any, base_model_id: str) -> None:
    _, cost = await finished_job(customer, base_model_id)
    await customer.submit(base_model_id)
    overview = (await customer.send("GET", "/api/overview?days=30")).json()
    assert overview == {
        "active_runs": 1,
        "models": 1,
        "datasets": 2,
        "gpu_minutes_period": 1.5,
        "tokens_period": 2 * 6 * 1000 * 256,
        "spend_usd_period": cost,
        "period_days": 30,
    }
    usage = (await customer.send("GET", "/api/usage?days=14")).json()
    assert list(usage) == [
        "period_days", "unit", "total_gpu_minutes", "total_tokens", "total_cost_usd", "total_jobs", "buckets",
    ]  # fmt: skip
    assert (usage["period_days"], usage["total_jobs"], usage["total_cost_usd"]) == (14, 1, cost)
    assert len(usage["buckets"]) == 14
    today = usage["buckets"][-1]
    assert today == {
        "date": datetime.now(UTC).date().isoformat(),
        "gpu_minutes": 1.5,
        "tokens": 2 * 6 * 1000 * 256,
        "cost_usd": cost,
        "jobs": 1,
    }
    assert all(bucket["jobs"] == 0 for bucket in usage["buckets"][:-1])


async def test_machine_time_of_every_attempt_counts_and_a_lost_one_only_as_long_as_its_lease(
    customer: Any, base_model_id: str
) -> None:
    job_id = await customer.submit(base_model_id)
    await customer.claim(job_id)
    await customer.pool.execute(
        "update jobs set gpus = 2, claimed_at = now() - interval '100 s', lease_expires_at = now() - interval '40 s'"
        " where id = $1",
        job_id,
    )
    await customer.send("POST", f"/api/jobs/{job_id}/cancel")
    await customer.pool.execute(
        "update jobs set state = 'queued', lease_owner = null, lease_expires_at = null, cancel_requested_at = null"
        " where id = $1",
        job_id,
    )
    assert round(await customer.pool.fetchval("select gpu_seconds from jobs where id = $1", job_id)) == 120


async def test_the_ledger_compares_directly_with_the_estimate(
    customer: Any, base_model_id: str, new_customer: Any
) -> None:
    job_id, _ = await finished_job(customer, base_model_id)
    (line,) = (await customer.send("GET", f"/api/ledger?job_id={job_id}")).json()
    estimate = (await customer.send("GET", f"/api/jobs/{job_id}")).json()["estimate"]
    assert line["line_items"] == estimate["line_items"]
    assert (line["total_usd"], line["job_id"], line["status"]) == (estimate["total_usd"], job_id, "completed")
    other = await new_customer()
    assert (await other.send("GET", f"/api/ledger?job_id={job_id}")).json() == []


async def test_a_job_beyond_the_limit_is_refused_and_leaves_nothing(
    customer: Any, base_model_id: str, problem: Any
) -> None:
    await customer.send("PATCH", "/api/account", json={"spend_limit_usd": PRICE})
    body = await customer.job_body(base_model_id)
    found = problem(await customer.send("POST", "/api/jobs", json=body), "spend_limit_reached")
    assert "$1.00" in found["detail"]
    assert (await customer.send("GET", "/api/jobs")).json() == []
    await customer.send("PATCH", "/api/account", json={"spend_limit_usd": None})
    assert (await customer.send("POST", "/api/jobs", json=body)).status_code == 201


async def test_open_jobs_reserve_and_two_at_once_cannot_both_take_the_last_of_it(
    customer: Any, base_model_id: str
) -> None:
    body = await customer.job_body(base_model_id)
    price = (await customer.send("GET", f"/api/jobs/{await customer.submit(base_model_id)}")).json()["estimate"]
    await customer.send("PATCH", "/api/account", json={"spend_limit_usd": 3 * price["total_usd"]})
    requests = [
        customer.send("POST", "/api/jobs", json=body | {"idempotency_key": f"race-{number}"}) for number in range(10)
    ]
    codes = sorted(answer.status_code for answer in await asyncio.gather(*requests))
    assert codes == [201] * 2 + [402] * 8
    spend = (await customer.send("GET", "/api/account")).json()["spend"]
    assert spend["reserved_usd"] == spend["limit_usd"] == 3 * price["total_usd"]


async def test_the_warning_is_soft(customer: Any, base_model_id: str) -> None:
    await customer.send("PATCH", "/api/account", json={"spend_warning_usd": PRICE})
    assert (await customer.send("GET", "/api/account")).json()["spend"]["warning"] is False
    await customer.submit(base_model_id)
    account = (await customer.send("GET", "/api/account")).json()
    assert account["spend"]["warning"] is True
    assert (await customer.send("PATCH", "/api/account", json={})).json() == account


async def test_a_key_expires(customer: Any, problem: Any) -> None:
    moment = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    body = {"name": "short", "scopes": ["read"], "expires_at": moment}
    created = (await customer.send("POST", "/api/keys", json=body)).json()
    bearer = {"Authorization": f"Bearer {created['secret']}"}
    assert (await customer.http.get("/api/jobs", headers=bearer)).status_code == 200
    await asyncio.sleep(1.1)
    problem(await customer.http.get("/api/jobs", headers=bearer), "unauthorized")
    listed = (await customer.send("GET", "/api/keys")).json()
    assert listed[0]["expires_at"] == created["expires_at"]
