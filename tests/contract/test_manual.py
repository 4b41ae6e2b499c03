"""The other pages of the manual, replayed: keys, errors, metrics, results, prices, usage."""

from typing import Any

import pytest
from fusion_core.money import DEFAULT_PRICES

from tests.integration.api.documented import document

from .shown import differences


async def test_the_estimate_of_the_manual(customer: Any) -> None:
    body = {"params_before": 70e9, "params_after": 90e9, "train_steps": 5000, "seq_len": 256}
    shown = {
        "total_usd": 557.6,
        "unit": "1M-tokens",
        "qty": 1.28,
        "line_items": [
            {"label": "training", "qty": 1280000, "unit": "1M-tokens", "rate": 45.0, "amount": 57.6},
            {"label": "growth", "qty": 20000000000, "unit": "params", "rate": 25.0, "amount": 500.0},
        ],
    }
    answer = await customer.send("POST", "/api/pricing/estimate", json=body)
    assert answer.status_code == 200
    assert differences(shown, answer.json(), more=False) == []


TIERS = [(3, 3.0, 9.0), (8, 6.0, 20.0), (34, 12.0, 50.0), (80, 25.0, 150.0), (200, 45.0, 350.0), (1000, 100.0, 800.0)]


@pytest.mark.parametrize(("billions", "per_million", "flat"), TIERS)
async def test_the_tiers_of_the_manual(customer: Any, billions: int, per_million: float, flat: float) -> None:
    params = billions * 1_000_000_000
    for size in (params, params - 1):
        train = {"params_before": size, "params_after": size, "tokens": 10_000_000}
        estimate = (await customer.send("POST", "/api/pricing/estimate", json=train)).json()
        assert estimate["total_usd"] == 10 * per_million
        contract = {"type": "contract", "params_before": size}
        estimate = (await customer.send("POST", "/api/pricing/estimate", json=contract)).json()
        assert (estimate["total_usd"], estimate["unit"]) == (flat, "job")


async def test_the_minimum_is_a_line_of_its_own_when_the_others_fall_below_it(customer: Any) -> None:
    body = {"params_before": 1_000_000, "params_after": 1_520_000, "tokens": 1_000_000}
    estimate = (await customer.send("POST", "/api/pricing/estimate", json=body)).json()
    assert estimate["total_usd"] == 3.013
    body["tokens"] = 1000
    estimate = (await customer.send("POST", "/api/pricing/estimate", json=body)).json()
    assert (estimate["total_usd"], estimate["line_items"][-1]["label"]) == (2.0, "minimum")
    assert DEFAULT_PRICES.version == 1


async def test_keys(customer: Any) -> None:
    body = {"name": "ci", "scopes": ["train", "read"]}
    created = await customer.send("POST", "/api/keys", json=body)
    assert (created.status_code, list(created.json())) == (201, ["id", "prefix", "scopes", "secret"])
    assert created.json()["secret"].startswith("fusion_live_")
    assert created.json()["secret"].startswith(created.json()["prefix"])
    shown = {
        "id": created.json()["id"],
        "name": "ci",
        "prefix": created.json()["prefix"],
        "scopes": ["read", "train"],
        "last_used_at": None,
        "revoked": False,
        "created_at": "<time>",
    }
    assert differences(shown, (await customer.send("GET", "/api/keys")).json()[0], more=False) == []
    gone = await customer.send("DELETE", f"/api/keys/{created.json()['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    customer.secret = created.json()["secret"]
    assert (await customer.send("GET", "/api/jobs")).status_code == 401


def test_the_scopes_of_the_document_are_those_of_the_manual() -> None:
    entries = [entry for methods in document()["paths"].values() for entry in methods.values()]
    used = {scope for entry in entries for one in entry["security"] for scope in one["key"]}
    assert used == {"train", "read", "datasets", "models", "billing"}


async def test_statuses_and_codes_of_errors(customer: Any, base_model_id: str) -> None:
    body = await customer.job_body(base_model_id)
    assert (await customer.send("POST", "/api/jobs", json=body)).status_code == 201
    requests = {
        400: ("POST", "/api/jobs", {"content": b"{"}),
        404: ("GET", "/api/jobs/00000000-0000-4000-8000-000000000000", {}),
        409: ("POST", "/api/jobs", {"json": body | {"hyperparams": {"turns": 3}}}),
        422: ("POST", "/api/jobs", {"json": body | {"hyperparams": {"turns": "two"}}}),
    }
    for status, (method, path, options) in requests.items():
        answer = await customer.send(method, path, **options)
        assert answer.status_code == status
        assert isinstance(answer.json()["detail"], str)
    await customer.use_key("billing")
    assert (await customer.send("GET", "/api/jobs")).status_code == 403


async def test_metrics_and_result(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    empty = {"job_id": job_id, "count": 0, "latest_step": "<any>", "points": []}
    assert differences(empty, (await customer.send("GET", f"/api/jobs/{job_id}/metrics?since_step=0")).json()) == []
    assert (await customer.send("GET", f"/api/jobs/{job_id}/result")).status_code == 404
    await customer.complete(await customer.claim(job_id))
    result = await customer.send("GET", f"/api/jobs/{job_id}/result")
    assert result.status_code == 200
    assert differences({"perplexity_before": 17.0, "perplexity_after": 11.0, "cost_usd": "<any>"}, result.json()) == []


async def test_the_ledger_line_has_the_line_items_of_the_estimate(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    estimate = (await customer.send("GET", f"/api/jobs/{job_id}")).json()["estimate"]
    await customer.complete(await customer.claim(job_id))
    [line] = (await customer.send("GET", f"/api/ledger?job_id={job_id}")).json()
    assert line["line_items"] == estimate["line_items"]


async def test_overview_and_usage(customer: Any) -> None:
    overview = {
        "active_runs": 0,
        "models": 0,
        "datasets": 0,
        "gpu_minutes_period": 0,
        "tokens_period": 0,
        "spend_usd_period": 0,
        "period_days": 30,
    }
    assert differences(overview, (await customer.send("GET", "/api/overview?days=30")).json(), more=False) == []
    bucket = {"date": "<any>", "gpu_minutes": 0, "tokens": 0, "cost_usd": 0, "jobs": 0}
    usage = {
        "period_days": 14,
        "unit": "<any>",
        "total_gpu_minutes": 0,
        "total_tokens": 0,
        "total_cost_usd": 0,
        "total_jobs": 0,
        "buckets": [bucket] * 14,
    }
    assert differences(usage, (await customer.send("GET", "/api/usage?days=14")).json(), more=False) == []
