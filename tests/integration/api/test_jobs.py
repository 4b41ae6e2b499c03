"""Jobs as a customer meets them: shapes of the manual, idempotency, refusals, no sight of other accounts."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fusion_core.db import attempts
from fusion_core.db.attempts import WorkerEvent
from fusion_core.db.pool import Pool, queries

NewCustomer = Callable[..., Awaitable[Any]]
Problem = Callable[[httpx.Response, str], Any]
NINE = ["id", "type", "status", "retries", "last_checkpoint_step", "output_model_id", "created_at", "started_at"]
NINE += ["finished_at"]


async def test_post_jobs_answers_exactly_the_nine_fields(customer: Any, base_model_id: str) -> None:
    response = await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))
    body = response.json()
    assert response.status_code == 201
    assert list(body) == NINE
    assert (body["type"], body["status"], body["retries"], body["output_model_id"]) == ("train", "queued", 0, None)
    assert len(body["created_at"]) == len("2026-06-04T02:30:00Z")
    assert body["created_at"].endswith("Z")
    detail = (await customer.send("GET", f"/api/jobs/{body['id']}")).json()
    assert detail["progress"]["total_steps"] == 2 * 6 * 1000
    assert detail["hyperparams"]["lr"] == 1e-4
    assert detail["params_after"] > detail["params_before"]
    (listed,) = (await customer.send("GET", "/api/jobs")).json()
    assert listed.items() >= body.items()
    assert (listed["base_model_id"], listed["labels"], listed["description"]) == (base_model_id, {}, None)


async def test_fifty_clients_with_one_key_make_one_job(customer: Any, base_model_id: str) -> None:
    body = await customer.job_body(base_model_id)
    answers = await asyncio.gather(*(customer.send("POST", "/api/jobs", json=body) for _ in range(50)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert sum(answer.headers.get("idempotent-replayed") == "true" for answer in answers) == 49


async def test_a_used_key_with_another_body_is_a_conflict(customer: Any, base_model_id: str, problem: Problem) -> None:
    body = await customer.job_body(base_model_id)
    await customer.send("POST", "/api/jobs", json=body)
    reordered = dict(reversed(body.items()))
    assert (await customer.send("POST", "/api/jobs", json=reordered)).status_code == 200
    other = body | {"hyperparams": {"turns": 3}}
    problem(await customer.send("POST", "/api/jobs", json=other), "idempotency_conflict")
    headers = {"Idempotency-Key": "another"}
    problem(await customer.send("POST", "/api/jobs", json=body, headers=headers), "idempotency_conflict")


async def test_every_bad_field_is_named_at_once(customer: Any, base_model_id: str, problem: Problem) -> None:
    body = await customer.job_body(base_model_id, colour="red", base_model_id="x")
    body["hyperparams"] = {"turns": 99, "lr": "fast", "steps_per_cylce": 5}
    del body["idempotency_key"]
    errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    named = {error["pointer"]: error["detail"] for error in errors}
    assert set(named) == {
        "/colour",
        "/base_model_id",
        "/idempotency_key",
        "/hyperparams/turns",
        "/hyperparams/lr",
        "/hyperparams/steps_per_cylce",
    }
    assert "steps_per_cycle" in named["/hyperparams/steps_per_cylce"]


@pytest.mark.parametrize("turns", [0, 99])
async def test_turns_out_of_range_create_nothing(
    customer: Any, base_model_id: str, turns: int, problem: Problem
) -> None:
    body = await customer.job_body(base_model_id, hyperparams={"turns": turns})
    errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    assert [error["pointer"] for error in errors] == ["/hyperparams/turns"]
    assert (await customer.send("GET", "/api/jobs")).json() == []


async def test_unknown_and_foreign_ids_look_the_same(
    customer: Any, new_customer: NewCustomer, base_model_id: str, problem: Problem
) -> None:
    stranger = await new_customer()
    created = await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))
    job_id = created.json()["id"]
    dataset_id = await customer.dataset()
    await customer.complete(await customer.claim(job_id))
    (model,) = (await customer.send("GET", "/api/models")).json()
    for path in (
        f"/api/jobs/{job_id}",
        f"/api/jobs/{job_id}/events",
        f"/api/jobs/{job_id}/metrics",
        f"/api/jobs/{job_id}/result",
        f"/api/models/{model['id']}/download",
        f"/api/datasets/{dataset_id}",
    ):
        assert (await customer.send("GET", path)).status_code == 200
        foreign = problem(await stranger.send("GET", path), "not_found")
        unknown = problem(await stranger.send("GET", path.replace(path.split("/")[3], str(uuid4()))), "not_found")
        assert foreign["detail"] == unknown["detail"]
    problem(await stranger.send("POST", f"/api/jobs/{job_id}/cancel"), "not_found")
    for name in ("jobs", "models", "datasets"):
        assert (await stranger.send("GET", f"/api/{name}")).json() == []
    body = await stranger.job_body(base_model_id, dataset_id=dataset_id)
    assert problem(await stranger.send("POST", "/api/jobs", json=body), "not_found")["errors"][0]["pointer"] == (
        "/dataset_id"
    )
    body = await stranger.job_body(model["id"])
    problem(await stranger.send("POST", "/api/jobs", json=body), "not_found")


async def test_a_dataset_that_is_not_ready_is_refused(customer: Any, base_model_id: str, problem: Problem) -> None:
    body = await customer.job_body(base_model_id, dataset_id=await customer.dataset(ready=False))
    problem(await customer.send("POST", "/api/jobs", json=body), "dataset_not_ready")


async def test_a_dataset_with_preference_rows_is_refused(
    customer: Any, base_model_id: str, problem: Problem, pool: Pool
) -> None:
    dataset_id = await customer.dataset()
    for rows_by_type in ({"text": 2}, {"text": 2, "preference": 3}):
        body = await customer.job_body(base_model_id, dataset_id=dataset_id)
        assert (await customer.send("POST", "/api/jobs", json=body)).status_code == 201  # no such rows so far
        await pool.execute("delete from dataset_reports where dataset_id = $1", UUID(dataset_id))
        report = {"rows_by_type": rows_by_type, "skipped_rows": 0}
        await queries.insert_dataset_report(pool, dataset_id=UUID(dataset_id), report=report)
    body = await customer.job_body(base_model_id, dataset_id=dataset_id)
    [error] = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    assert error["pointer"] == "/dataset_id"
    assert error["detail"].startswith("has 3 preference rows")


async def test_a_base_of_an_unknown_architecture_is_refused(
    customer: Any, base_model_id: str, pool: Pool, problem: Problem
) -> None:
    await pool.execute("update base_models set config = jsonb_set(config, '{architectures}', '[\"X\"]')")
    body = await customer.job_body(base_model_id)
    assert (
        "LlamaForCausalLM"
        in problem(await customer.send("POST", "/api/jobs", json=body), "unsupported_architecture")["detail"]
    )


async def test_seq_len_beyond_the_model_is_refused(customer: Any, base_model_id: str, problem: Problem) -> None:
    body = await customer.job_body(base_model_id, hyperparams={"seq_len": 2048})
    errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    assert errors[0]["pointer"] == "/hyperparams/seq_len"


async def test_a_job_from_claim_to_result_to_download(
    customer: Any, base_model_id: str, pool: Pool, problem: Problem
) -> None:
    created = (await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))).json()
    path = f"/api/jobs/{created['id']}"
    problem(await customer.send("GET", f"{path}/result"), "result_not_ready")
    attempt = await customer.claim(created["id"])
    assert (await customer.send("GET", path)).json()["status"] == "provisioning"
    point = {"ts": "2026-06-04T02:30:00Z", "step": 7, "cycle": 1, "phase": "train", "loss": 2.5, "lr": 1e-4}
    point |= {"throughput": 4.0, "vram_gb": 0.0, "grad_norm": 1.0, "tokens_per_s": 9.0}
    async with pool.acquire() as conn:
        await attempts.append_events(conn, attempt, [WorkerEvent(1, "phase", {"phase": "training"})], "training")
        await attempts.append_events(conn, attempt, [WorkerEvent(2, "metrics", point)])
    running = (await customer.send("GET", path)).json()
    assert (running["status"], running["progress"]["step"]) == ("running", 7)
    metrics = (await customer.send("GET", f"{path}/metrics?since_step=0")).json()
    assert metrics == {"job_id": created["id"], "count": 1, "latest_step": 7, "points": [point]}
    assert (await customer.send("GET", f"{path}/metrics?since_step=7")).json()["points"] == []
    await customer.complete(attempt)
    done = (await customer.send("GET", path)).json()
    assert (done["status"], done["progress"]["percent"]) == ("completed", 100.0)
    result = (await customer.send("GET", f"{path}/result")).json()
    assert result["perplexity_after"] == 11.0
    assert result["cost_usd"] == done["estimate"]["total_usd"]
    (model,) = (await customer.send("GET", "/api/models")).json()
    assert (model["id"], model["version"], model["lineage"]["job_id"]) == (
        done["output_model_id"],
        "v1",
        created["id"],
    )
    download = (await customer.send("GET", f"/api/models/{model['id']}/download")).json()
    (file,) = download["files"]
    assert (file["rel"], file["size"], download["model_id"]) == ("config.json", 5, model["id"])
    assert "X-Amz-Signature" in file["url"]
    cancelled = await customer.send("POST", f"{path}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "completed")


async def test_a_failed_job_explains_itself(customer: Any, base_model_id: str, pool: Pool) -> None:
    created = (await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))).json()
    async with pool.acquire() as conn:
        await attempts.fail(conn, await customer.claim(created["id"]), "nonfinite_loss", "The loss is not a number.")
    error = (await customer.send("GET", f"/api/jobs/{created['id']}")).json()["error"]
    assert (error["code"], error["message"]) == ("nonfinite_loss", "The loss is not a number.")


async def test_lists_are_newest_first_and_link_to_the_next_page(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    ids = []
    for _ in range(3):
        body = await customer.job_body(base_model_id)
        ids.insert(0, (await customer.send("POST", "/api/jobs", json=body)).json()["id"])
    first = await customer.send("GET", "/api/jobs?limit=2")
    assert [job["id"] for job in first.json()] == ids[:2]
    assert first.headers["link"] == f'</api/jobs?limit=2&after={ids[1]}>; rel="next"'
    second = await customer.send("GET", f"/api/jobs?limit=2&after={ids[1]}")
    assert [job["id"] for job in second.json()] == ids[2:]
    assert "link" not in second.headers
    problem(await customer.send("GET", "/api/jobs?limit=1000"), "validation_failed")


async def test_a_model_of_ones_own_can_be_grown_again(customer: Any, base_model_id: str) -> None:
    first = await customer.submit(base_model_id)
    await customer.complete(await customer.claim(first))
    (model,) = (await customer.send("GET", "/api/models")).json()
    second = (await customer.send("GET", f"/api/jobs/{await customer.submit(model['id'])}")).json()
    assert second["base_model_id"] == model["id"]
    await customer.complete(await customer.claim(second["id"]))
    newest, oldest = (await customer.send("GET", "/api/models")).json()
    assert newest["lineage"] == {"job_id": second["id"], "parent_model_id": model["id"]}
    assert (newest["name"], newest["version"], oldest["version"]) == (model["name"], "v2", "v1")


async def test_a_cancel_of_a_running_job_is_pending_until_its_worker_obeys(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    attempt = await customer.claim(job_id)
    for _ in range(2):
        asked = await customer.send("POST", f"/api/jobs/{job_id}/cancel")
        assert (asked.status_code, asked.json()["status"]) == (200, "provisioning")
        assert asked.json()["cancel_requested"] is True
    async with customer.pool.acquire() as conn:
        await attempts.obey(conn, attempt)
    ended = (await customer.send("GET", f"/api/jobs/{job_id}")).json()
    assert ended["status"] == "cancelled"
    assert ended["finished_at"] is not None


async def test_an_idempotency_key_belongs_to_its_account(
    customer: Any, new_customer: NewCustomer, base_model_id: str
) -> None:
    stranger = await new_customer()
    mine = await customer.submit(base_model_id, idempotency_key="run-1")
    assert await stranger.submit(base_model_id, idempotency_key="run-1") != mine


async def test_a_key_used_once_answers_even_when_its_dataset_is_gone(customer: Any, base_model_id: str) -> None:
    """A retry after a dropped connection gets its job, whatever has happened since."""
    body = await customer.job_body(base_model_id)
    created = (await customer.send("POST", "/api/jobs", json=body)).json()
    await customer.pool.execute("update datasets set status = 'failed', error = '{}'")
    again = await customer.send("POST", "/api/jobs", json=body)
    assert (again.status_code, again.json()) == (200, created)
