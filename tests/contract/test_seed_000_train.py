"""'Train a model', replayed: the shortest path, the answer, the estimate, the two recipes."""

from typing import Any

import pytest

from .shown import differences

CREATED = {
    "id": "<id>",
    "type": "train",
    "status": "queued",
    "retries": 0,
    "last_checkpoint_step": 0,
    "output_model_id": None,
    "created_at": "<time>",
    "started_at": None,
    "finished_at": None,
}


async def create(customer: Any, base: str, key: str, hyperparams: dict[str, Any]) -> Any:
    body = {
        "type": "train",
        "idempotency_key": key,
        "base_model_id": base,
        "dataset_id": await customer.dataset(),
        "hyperparams": hyperparams,
    }
    return await customer.send("POST", "/api/jobs", json=body)


async def test_the_shortest_path(customer: Any, base_model_id: str) -> None:
    answer = await create(customer, base_model_id, "run-2026-06-04-a", {"turns": 2, "output_name": "my-grown-model"})
    assert answer.status_code == 201
    assert differences(CREATED, answer.json(), more=False) == []


@pytest.mark.parametrize(
    ("key", "hyperparams"), [("smoke-1", {"turns": 1}), ("prod-1", {"turns": 2, "output_name": "support-bot-v1"})]
)
async def test_recipes(customer: Any, base_model_id: str, key: str, hyperparams: dict[str, Any]) -> None:
    answer = await create(customer, base_model_id, key, hyperparams)
    assert differences(CREATED, answer.json(), more=False) == []


async def test_submitting_the_same_key_again_answers_the_existing_job(customer: Any, base_model_id: str) -> None:
    body = await customer.job_body(base_model_id, idempotency_key="customer-42-run-3")
    first, again = [await customer.send("POST", "/api/jobs", json=body) for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


async def test_hyperparams_may_be_omitted(customer: Any, base_model_id: str) -> None:
    body = await customer.job_body(base_model_id)
    del body["hyperparams"]
    job = (await customer.send("POST", "/api/jobs", json=body)).json()
    shown = (await customer.send("GET", f"/api/jobs/{job['id']}")).json()
    assert {"turns": 1, "cycles": 6, "steps_per_cycle": 1000}.items() <= shown["hyperparams"].items()


@pytest.mark.parametrize(("turns", "training"), [(1, 4.608), (2, 9.216)])
async def test_turns_scale_training_and_leave_the_growth_fee_alone(customer: Any, turns: int, training: float) -> None:
    body = {"type": "train", "params_before": 1500000000, "params_after": 2360000000, "turns": turns}
    estimate = (await customer.send("POST", "/api/pricing/estimate", json=body)).json()
    amounts = {line["label"]: line["amount"] for line in estimate["line_items"]}
    assert amounts == {"training": training, "growth": 21.5}
    assert estimate["total_usd"] == training + 21.5
