"""The bodies of POST /jobs by type: train with growth in every form, finetune, contract; and what each costs."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fusion_core.db import attempts
from fusion_core.db.attempts import WorkerEvent

NewCustomer = Callable[..., Awaitable[Any]]
Problem = Callable[[httpx.Response, str], Any]


async def detail(customer: Any, body: dict[str, Any]) -> Any:
    """A job just created, as GET shows it."""
    created = await customer.send("POST", "/api/jobs", json={"idempotency_key": uuid4().hex} | body)
    assert created.status_code == 201, created.text
    return (await customer.send("GET", f"/api/jobs/{created.json()['id']}")).json()


async def refusals(customer: Any, problem: Problem, body: dict[str, Any], code: str = "validation_failed") -> Any:
    response = await customer.send("POST", "/api/jobs", json={"idempotency_key": uuid4().hex} | body)
    return {error["pointer"]: error["detail"] for error in problem(response, code)["errors"]}


def lines(job: Any) -> dict[str, float]:
    return {line["label"]: line["amount"] for line in job["estimate"]["line_items"]}


# -- type ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "is required; known: train, finetune, contract"),
        ({"type": "finetuning"}, "unknown value; did you mean 'finetune'?"),
        ({"type": 7}, "unknown value; known: train, finetune, contract"),
    ],
)
async def test_a_missing_or_unknown_type_is_named_with_those_that_exist(
    customer: Any, problem: Problem, given: dict[str, Any], said: str
) -> None:
    assert await refusals(customer, problem, given) == {"/type": said}


async def test_fields_of_another_type_are_unknown(customer: Any, base_model_id: str, problem: Problem) -> None:
    body = {"type": "contract", "base_model_id": base_model_id, "hyperparams": {"turns": 2, "contraction_ration": 0.5}}
    assert await refusals(customer, problem, body) == {
        "/base_model_id": "unknown field; known: idempotency_key, priority, compute, labels, description,"
        " hyperparams, dataset_id",
        "/hyperparams/turns": "unknown field; known: contraction_ratio, num_layers_to_contract, output_name,"
        " train_steps, importance, lr, seq_len, batch_size, precision, seed, source_model_id",
        "/hyperparams/contraction_ration": "unknown field; did you mean 'contraction_ratio'?",
        "/hyperparams/source_model_id": "is required",
    }


# -- train -----------------------------------------------------------------------------------------------------------


async def test_every_advanced_setting_is_frozen_as_given(customer: Any, base_model_id: str) -> None:
    settings = {"train_scope": "all", "old_lr_scale": 0.2, "replay_fraction": 0.1, "retain": 0.05, "eval_every": 50}
    settings |= {"gradient_accumulation": 4, "precision": "fp32", "deterministic": False, "growth_placement": "even"}
    job = await detail(customer, await customer.job_body(base_model_id, hyperparams=settings))
    assert settings.items() <= job["hyperparams"].items()
    assert job["progress"]["total_steps"] == 6000


async def test_no_growth_is_further_training_of_all_weights_without_a_growth_fee(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    job = await detail(customer, await customer.job_body(base_model_id, hyperparams={"growth_factor": 1.0}))
    assert job["params_before"] == job["params_after"]
    assert job["hyperparams"]["train_scope"] == "all"
    assert "growth" not in lines(job)
    for setting, value in (("train_scope", "new"), ("own_head", True)):
        body = await customer.job_body(base_model_id, hyperparams={"growth_factor": 1.0, setting: value})
        assert set(await refusals(customer, problem, body)) == {f"/hyperparams/{setting}"}


async def test_a_growth_factor_beside_layers_added_is_refused(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    for settings in ({"layers_added": 2, "growth_factor": 1.52}, {"layers_added": 2, "growth_axis": "width"}):
        body = await customer.job_body(base_model_id, hyperparams=settings)
        assert set(await refusals(customer, problem, body)) == {"/hyperparams/layers_added"}


# -- finetune --------------------------------------------------------------------------------------------------------


async def test_a_finetune_keeps_the_size_and_pays_tokens_alone(customer: Any, base_model_id: str) -> None:
    model_id = await customer.model(base_model_id)
    settings = {"lora_rank": 8, "steps": 4000, "batch_size": 2, "output_name": "tuned"}
    body = {"type": "finetune", "source_model_id": model_id, "dataset_id": await customer.dataset()}
    job = await detail(customer, body | {"hyperparams": settings})
    assert (job["type"], job["status"], job["progress"]["total_steps"]) == ("finetune", "queued", 4000)
    assert (job["params_before"], job["params_after"]) == (9_000_000, 9_000_000)
    assert (job["source_model_id"], job["base_model_id"]) == (model_id, None)
    assert settings.items() <= job["hyperparams"].items()
    assert lines(job) == {"training": pytest.approx(4000 * 256 * 2 * 3 / 1e6)}
    attempt = await customer.claim(job["id"])
    await customer.complete(attempt)
    newest, oldest = (await customer.send("GET", "/api/models")).json()
    assert newest["lineage"] == {"job_id": job["id"], "parent_model_id": model_id}
    assert newest["base_model_id"] == oldest["base_model_id"] == base_model_id
    ledger = await customer.pool.fetchrow("select amount_microusd, tokens from ledger where job_id = $1", job["id"])
    assert tuple(ledger) == (round(job["estimate"]["total_usd"] * 1e6), 4000 * 256 * 2)


@pytest.mark.parametrize("place", ["base_model_id", "source_model_id", "hyperparams"])
async def test_a_finetune_names_its_model_in_one_of_three_places(customer: Any, base_model_id: str, place: str) -> None:
    model_id = base_model_id if place == "base_model_id" else await customer.model(base_model_id)
    named = {"hyperparams": {"source_model_id": model_id}} if place == "hyperparams" else {place: model_id}
    job = await detail(customer, {"type": "finetune", "dataset_id": await customer.dataset()} | named)
    assert model_id in (job["base_model_id"], job["source_model_id"])
    assert "source_model_id" not in job["hyperparams"]
    assert (job["hyperparams"]["lora_rank"], job["hyperparams"]["steps"]) == (32, 2000)


async def test_a_finetune_of_no_model_of_two_or_of_a_strangers_is_refused(
    customer: Any, new_customer: NewCustomer, base_model_id: str, problem: Problem
) -> None:
    model_id = await customer.model(base_model_id)
    body = {"type": "finetune", "dataset_id": await customer.dataset()}
    assert set(await refusals(customer, problem, body)) == {"/source_model_id"}
    two = body | {"base_model_id": base_model_id, "hyperparams": {"source_model_id": model_id}}
    assert set(await refusals(customer, problem, two)) == {"/hyperparams/source_model_id"}
    catalog = body | {"source_model_id": base_model_id}
    assert set(await refusals(customer, problem, catalog, "not_found")) == {"/source_model_id"}
    stranger = await new_customer()
    foreign = {"type": "finetune", "dataset_id": await stranger.dataset(), "source_model_id": model_id}
    assert set(await refusals(stranger, problem, foreign, "not_found")) == {"/source_model_id"}
    missing = {"type": "finetune", "source_model_id": model_id}
    assert await refusals(customer, problem, missing) == {"/dataset_id": "is required"}


# -- contract --------------------------------------------------------------------------------------------------------


async def test_a_contraction_needs_only_its_source_and_pays_a_flat_fee(customer: Any, base_model_id: str) -> None:
    model_id = await customer.model(base_model_id)
    job = await detail(customer, {"type": "contract", "hyperparams": {"source_model_id": model_id}})
    assert (job["type"], job["source_model_id"], job["base_model_id"]) == ("contract", model_id, None)
    assert job["dataset_id"] is None
    assert job["hyperparams"]["num_layers_to_contract"] == 4, "min(8, depth)"
    assert job["params_after"] < job["params_before"]
    assert (lines(job), job["estimate"]["unit"]) == ({"contraction": 9.0}, "job")
    attempt = await customer.claim(job["id"])
    await customer.complete(attempt)
    newest = (await customer.send("GET", "/api/models")).json()[0]
    assert newest["lineage"] == {"job_id": job["id"], "parent_model_id": model_id}
    assert (await customer.send("GET", f"/api/jobs/{job['id']}/result")).json()["cost_usd"] == 9.0


async def test_a_contraction_takes_a_dataset_and_no_more_layers_than_there_are(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    settings = {"source_model_id": await customer.model(base_model_id), "num_layers_to_contract": 4, "train_steps": 0}
    dataset_id = await customer.dataset()
    job = await detail(customer, {"type": "contract", "dataset_id": dataset_id, "hyperparams": settings})
    assert (job["dataset_id"], job["progress"]["total_steps"], job["progress"]["percent"]) == (dataset_id, 0, 0.0)
    beyond = {"type": "contract", "hyperparams": settings | {"num_layers_to_contract": 5}}
    assert await refusals(customer, problem, beyond) == {
        "/hyperparams/num_layers_to_contract": "is beyond the model's 4 layers"
    }
    catalog = {"type": "contract", "hyperparams": {"source_model_id": base_model_id}}
    assert set(await refusals(customer, problem, catalog, "not_found")) == {"/hyperparams/source_model_id"}


async def test_a_cancelled_contraction_owes_nothing(customer: Any, base_model_id: str) -> None:
    model_id = await customer.model(base_model_id)
    job = await detail(customer, {"type": "contract", "hyperparams": {"source_model_id": model_id}})
    attempt = await customer.claim(job["id"])
    async with customer.pool.acquire() as conn:
        await attempts.append_events(conn, attempt, [WorkerEvent(1, "phase", {"phase": "training"})], "training")
        await customer.send("POST", f"/api/jobs/{job['id']}/cancel")
        await attempts.obey(conn, attempt)
    ledger = await customer.pool.fetch("select amount_microusd from ledger where job_id = $1", job["id"])
    assert [row["amount_microusd"] for row in ledger] == [0]


# -- estimates -------------------------------------------------------------------------------------------------------


async def test_estimates_of_each_type_are_what_the_jobs_cost(customer: Any, base_model_id: str) -> None:
    model_id = await customer.model(base_model_id)
    dataset_id = await customer.dataset()
    contracted = await detail(customer, {"type": "contract", "hyperparams": {"source_model_id": model_id}})
    tuned = {"type": "finetune", "source_model_id": model_id, "dataset_id": dataset_id}
    tuned = await detail(customer, tuned | {"hyperparams": {"steps": 9000, "seq_len": 512, "batch_size": 2}})
    asked = {"type": "contract", "params_before": contracted["params_before"]}
    assert (await customer.send("POST", "/api/pricing/estimate", json=asked)).json() == contracted["estimate"]
    asked = {"type": "finetune", "params_before": 9_000_000, "steps": 9000, "seq_len": 512, "batch_size": 2}
    assert (await customer.send("POST", "/api/pricing/estimate", json=asked)).json() == tuned["estimate"]


async def test_an_estimate_of_a_finetune_that_changes_the_size_is_refused(customer: Any, problem: Problem) -> None:
    asked = {"type": "finetune", "params_before": 10, "params_after": 11}
    answer = await customer.send("POST", "/api/pricing/estimate", json=asked)
    assert [error["pointer"] for error in problem(answer, "validation_failed")["errors"]] == ["/params_after"]
