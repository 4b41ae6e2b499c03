"""Estimates, prices and the ledger agree to the micro-dollar, over the whole space of hyperparameters."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
from fusion_core.db.pool import queries
from fusion_core.money import DEFAULT_PRICES, MICRO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

Problem = Callable[[httpx.Response, str], Any]
ESTIMATE = "/api/pricing/estimate"

COMMON = {
    "seq_len": st.integers(8, 1024),
    "batch_size": st.integers(1, 4096),
    "lr": st.floats(1e-6, 1),
}
TRAIN = COMMON | {
    "turns": st.integers(1, 10),
    "cycles": st.integers(1, 1000),
    "steps_per_cycle": st.integers(1, 1_000_000),
    "train_steps": st.integers(1, 10_000_000),
    "gradient_accumulation": st.integers(1, 1024),
    "growth_factor": st.floats(1.3, 4.0),
    "growth_axis": st.sampled_from(["depth", "width"]),
    "replay_fraction": st.floats(0, 0.5),
}
FINETUNE = COMMON | {"steps": st.integers(1, 10_000_000), "lora_rank": st.integers(1, 1024)}
CONTRACT = COMMON | {"contraction_ratio": st.floats(0.1, 0.9), "train_steps": st.integers(0, 5000)}


def some(settings_of_a_type: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=settings_of_a_type)


JOBS = st.one_of(
    some(TRAIN).map(lambda one: {"type": "train", "hyperparams": one}),
    some(FINETUNE).map(lambda one: {"type": "finetune", "hyperparams": one}),
    some(CONTRACT).map(lambda one: {"type": "contract", "hyperparams": one}),
)
COUNTED = ("turns", "cycles", "steps_per_cycle", "train_steps", "seq_len", "batch_size", "gradient_accumulation")
# One database serves all examples: each makes its own job.
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def body_of(customer: Any, base: str, models: list[str], drawn: dict[str, Any]) -> dict[str, Any]:
    body = drawn | {"idempotency_key": uuid4().hex}
    if drawn["type"] == "contract":
        if not models:
            models.append(await customer.model(base))
        return body | {"hyperparams": drawn["hyperparams"] | {"source_model_id": models[0]}}
    return body | {"base_model_id": base, "dataset_id": await customer.dataset()}


async def test_estimate_and_ledger_are_equal_whatever_the_job(customer: Any, base_model_id: str) -> None:
    models: list[str] = []

    @MANY
    @given(JOBS)
    async def check(drawn: dict[str, Any]) -> None:
        body = await body_of(customer, base_model_id, models, drawn)
        estimate = (await customer.send("POST", ESTIMATE, json={"job": body})).json()
        created = await customer.send("POST", "/api/jobs", json=body)
        assert created.status_code == 201, created.text
        job = (await customer.send("GET", f"/api/jobs/{created.json()['id']}")).json()
        assert {name: estimate[name] for name in job["estimate"]} == job["estimate"]
        assert (estimate["params_before"], estimate["params_after"]) == (job["params_before"], job["params_after"])
        await customer.complete(await customer.claim(job["id"]))
        (line,) = (await customer.send("GET", f"/api/ledger?job_id={job['id']}")).json()
        assert (line["line_items"], line["total_usd"]) == (estimate["line_items"], estimate["total_usd"])
        assert line["tokens"] == estimate["tokens"]
        paid = await customer.pool.fetchrow(
            "select l.amount_microusd, j.reserved_microusd from ledger l join jobs j on j.id = l.job_id"
            " where j.id = $1", job["id"]
        )  # fmt: skip
        assert paid["amount_microusd"] == paid["reserved_microusd"] == round(estimate["total_usd"] * MICRO)
        if drawn["type"] == "train":
            numbers = {"params_before": job["params_before"], "params_after": job["params_after"]}
            numbers |= {
                name: job["hyperparams"][name] for name in ("turns", "cycles", "steps_per_cycle", "train_steps")
            }
            numbers |= {name: job["hyperparams"][name] for name in ("seq_len", "batch_size", "gradient_accumulation")}
            by_numbers = (await customer.send("POST", ESTIMATE, json=numbers)).json()
            assert by_numbers == job["estimate"], "the numbers of a job cost what the job costs"

    await run(check)


async def run(check: Any) -> None:
    """Let hypothesis, which is synchronous, drive a coroutine in the loop that the fixtures live in."""
    inner, loop = check.hypothesis.inner_test, asyncio.get_running_loop()

    def in_thread(*args: Any, **kwargs: Any) -> None:
        asyncio.run_coroutine_threadsafe(inner(*args, **kwargs), loop).result(60)

    check.hypothesis.inner_test = in_thread
    await asyncio.to_thread(check)


async def test_the_price_table_is_the_one_that_is_charged(customer: Any) -> None:
    shown = (await customer.send("GET", "/api/pricing")).json()
    assert shown["version"] == 1
    assert (shown["growth_usd_per_billion_params"], shown["minimum_usd"]) == (25.0, 2.0)
    billions = [3, 8, 34, 80, 200, 1000]
    assert shown["tiers"] == [
        {"max_params": n * 10**9, "usd_per_million_tokens": tokens, "contraction_usd": fee}
        for n, tokens, fee in zip(billions, [3, 6, 12, 25, 45, 100], [9, 20, 50, 150, 350, 800], strict=True)
    ]
    for tier in shown["tiers"]:
        asked = {"params_before": tier["max_params"], "params_after": tier["max_params"], "tokens": 10**6}
        line = (await customer.send("POST", ESTIMATE, json=asked)).json()["line_items"][0]
        assert line["amount"] == line["rate"] == tier["usd_per_million_tokens"]


async def test_a_change_of_prices_touches_no_job_that_exists(customer: Any, base_model_id: str) -> None:
    running, stopped = await customer.submit(base_model_id), await customer.submit(base_model_id)
    attempt = await customer.claim(running)
    other = await customer.claim(stopped)
    checkpoints = [await customer.checkpoint(other, step) for step in (10, 20)]
    await customer.send("POST", f"/api/jobs/{stopped}/stop")
    await customer.obey(other)
    before = (await customer.send("GET", f"/api/jobs/{running}")).json()["estimate"]
    tiers = tuple(replace(tier, per_million_tokens=2 * tier.per_million_tokens) for tier in DEFAULT_PRICES.tiers)
    growth = 2 * DEFAULT_PRICES.growth_per_billion
    doubled = replace(DEFAULT_PRICES, version=2, growth_per_billion=growth, tiers=tiers)
    await queries.insert_prices(customer.pool, version=2, price_table=doubled)
    assert (await customer.send("GET", "/api/pricing")).json()["version"] == 2
    assert (await customer.send("GET", f"/api/jobs/{running}")).json()["estimate"] == before
    await customer.complete(attempt)
    (line,) = (await customer.send("GET", f"/api/ledger?job_id={running}")).json()
    assert (line["total_usd"], line["price_version"]) == (before["total_usd"], 1)
    await customer.send("POST", f"/api/jobs/{stopped}/resume")
    assert (await customer.send("GET", f"/api/jobs/{stopped}")).json()["estimate"]["line_items"][0]["rate"] == 3.0
    new = (await customer.send("GET", f"/api/jobs/{await customer.submit(base_model_id)}")).json()["estimate"]
    assert [line["rate"] for line in new["line_items"]] == [6.0, 50.0]
    await customer.send("POST", f"/api/jobs/{stopped}/stop")
    resumed = await customer.send("POST", f"/api/jobs/{stopped}/resume", json={"checkpoint_id": checkpoints[0]})
    assert resumed.json()["estimate"]["line_items"][0]["rate"] == 6.0, "a new job is created at the prices of its day"


async def test_a_price_table_that_no_longer_reaches_a_model_refuses_its_older_checkpoints(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    job_id = await customer.submit(base_model_id)
    lease = await customer.claim(job_id)
    older, _ = [await customer.checkpoint(lease, step) for step in (10, 20)]
    await customer.send("POST", f"/api/jobs/{job_id}/stop")
    await customer.obey(lease)
    narrower = replace(DEFAULT_PRICES, version=2, tiers=(replace(DEFAULT_PRICES.tiers[0], max_params=1000),))
    await queries.insert_prices(customer.pool, version=2, price_table=narrower)
    refused = await customer.send("POST", f"/api/jobs/{job_id}/resume", json={"checkpoint_id": older})
    (fault,) = problem(refused, "validation_failed")["errors"]
    assert fault["pointer"] == "/checkpoint_id"
    assert "beyond the largest priced model" in fault["detail"]
    assert "without checkpoint_id" in fault["detail"], "what to do next"
    assert (await customer.send("POST", f"/api/jobs/{job_id}/resume")).json()["status"] == "queued", "its price is kept"


async def test_an_estimate_of_a_job_creates_nothing_and_names_what_is_wrong(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    body = await customer.job_body(base_model_id)
    for _ in range(2):
        assert (await customer.send("POST", ESTIMATE, json={"job": body})).status_code == 200
    assert (await customer.send("GET", "/api/jobs")).json() == []

    async def pointers(asked: dict[str, Any], code: str = "validation_failed") -> list[str]:
        return [one["pointer"] for one in problem(await customer.send("POST", ESTIMATE, json=asked), code)["errors"]]

    assert await pointers({}) == ["/params_before"]
    assert await pointers({"job": body, "turns": 2}) == ["/turns"]
    assert await pointers({"job": body | {"hyperparams": {"turns": 99}}}) == ["/job/hyperparams/turns"]
    assert await pointers({"job": body | {"base_model_id": str(uuid4())}}, "not_found") == ["/job/base_model_id"]
    assert await pointers({"job": body | {"hyperparams": {"seq_len": 4096}}}) == ["/job/hyperparams/seq_len"]


async def test_more_tokens_than_one_job_may_train_on_are_refused(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    largest = {"turns": 10, "train_steps": 10_000_000, "seq_len": 131_072}
    largest |= {"batch_size": 4096, "gradient_accumulation": 1024}
    sizes = {"params_before": 10**12, "params_after": 10**12}
    answer = await customer.send("POST", ESTIMATE, json=largest | sizes)
    assert problem(answer, "validation_failed")["errors"][0]["pointer"] == "/tokens"
    body = await customer.job_body(base_model_id, hyperparams=largest | {"seq_len": 1024})
    answer = await customer.send("POST", "/api/jobs", json=body)
    assert problem(answer, "validation_failed")["errors"][0]["pointer"] == "/hyperparams"
