"""The public API as a customer meets it: shapes of the manual, errors with codes, no sight of other accounts."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fusion_api.app import OPERATIONS
from fusion_api.uploads import sanitised
from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt, Claimer, NewModel, WorkerEvent
from fusion_core.db.pool import Pool
from fusion_core.problems import PROBLEMS
from fusion_core.trainer_protocol import FileEntry, Manifest

NewCustomer = Callable[..., Awaitable[Any]]
NINE = ["id", "type", "status", "retries", "last_checkpoint_step", "output_model_id", "created_at", "started_at"]
NINE += ["finished_at"]


def problem(response: httpx.Response, code: str) -> Any:
    """The body of an error, checked for everything that every error has."""
    body = response.json()
    assert (response.status_code, body.get("code")) == (PROBLEMS[code].status, code), body
    assert response.headers["content-type"].startswith("application/problem+json")
    assert body["request_id"] == response.headers["x-request-id"]
    assert PROBLEMS[code].advice in body["detail"]
    return body


async def claim(pool: Pool, job_id: str) -> Attempt:
    attempt_id = uuid4()
    async with pool.acquire() as conn:
        claimer = Claimer(worker_id=uuid4(), pool="h100x1")
        job = await attempts.claim(conn, claimer, UUID(job_id), 0, attempt_id, 20)
    assert job is not None
    return Attempt(job.id, job.lease_epoch, attempt_id)


async def complete(pool: Pool, attempt: Attempt) -> None:
    manifest = Manifest((FileEntry("config.json", 5, "0" * 64),))
    model = NewModel(name="my-grown-model", params=9, config={}, s3_prefix=f"jobs/{attempt.job_id}", manifest=manifest)
    async with pool.acquire() as conn:
        await attempts.complete_training(conn, attempt, model, {"perplexity_before": 17.0, "perplexity_after": 11.0})


# -- jobs ------------------------------------------------------------------------------------------------------------


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
    listed = (await customer.send("GET", "/api/jobs")).json()
    assert listed == [body]


async def test_fifty_clients_with_one_key_make_one_job(customer: Any, base_model_id: str) -> None:
    body = await customer.job_body(base_model_id)
    answers = await asyncio.gather(*(customer.send("POST", "/api/jobs", json=body) for _ in range(50)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert sum(answer.headers.get("idempotent-replayed") == "true" for answer in answers) == 49


async def test_a_used_key_with_another_body_is_a_conflict(customer: Any, base_model_id: str) -> None:
    body = await customer.job_body(base_model_id)
    await customer.send("POST", "/api/jobs", json=body)
    reordered = dict(reversed(body.items()))
    assert (await customer.send("POST", "/api/jobs", json=reordered)).status_code == 200
    other = body | {"hyperparams": {"turns": 3}}
    problem(await customer.send("POST", "/api/jobs", json=other), "idempotency_conflict")
    headers = {"Idempotency-Key": "another"}
    problem(await customer.send("POST", "/api/jobs", json=body, headers=headers), "idempotency_conflict")


async def test_every_bad_field_is_named_at_once(customer: Any, base_model_id: str) -> None:
    body = await customer.job_body(base_model_id, type="contract", colour="red", base_model_id="x")
    body["hyperparams"] = {"turns": 99, "lr": "fast", "steps_per_cylce": 5}
    del body["idempotency_key"]
    errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    named = {error["pointer"]: error["detail"] for error in errors}
    assert set(named) == {
        "/type",
        "/colour",
        "/base_model_id",
        "/idempotency_key",
        "/hyperparams/turns",
        "/hyperparams/lr",
        "/hyperparams/steps_per_cylce",
    }
    assert "steps_per_cycle" in named["/hyperparams/steps_per_cylce"]


@pytest.mark.parametrize("turns", [0, 99])
async def test_turns_out_of_range_create_nothing(customer: Any, base_model_id: str, turns: int) -> None:
    body = await customer.job_body(base_model_id, hyperparams={"turns": turns})
    errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    assert [error["pointer"] for error in errors] == ["/hyperparams/turns"]
    assert (await customer.send("GET", "/api/jobs")).json() == []


async def test_unknown_and_foreign_ids_look_the_same(
    customer: Any, new_customer: NewCustomer, base_model_id: str, pool: Pool
) -> None:
    stranger = await new_customer()
    created = await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))
    job_id = created.json()["id"]
    dataset_id = await customer.dataset()
    await complete(pool, await claim(pool, job_id))
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


async def test_a_dataset_that_is_not_ready_is_refused(customer: Any, base_model_id: str) -> None:
    body = await customer.job_body(base_model_id, dataset_id=await customer.dataset(ready=False))
    problem(await customer.send("POST", "/api/jobs", json=body), "dataset_not_ready")


async def test_a_base_of_an_unknown_architecture_is_refused(customer: Any, base_model_id: str, pool: Pool) -> None:
    await pool.execute("update base_models set config = jsonb_set(config, '{architectures}', '[\"X\"]')")
    body = await customer.job_body(base_model_id)
    assert (
        "LlamaForCausalLM"
        in problem(await customer.send("POST", "/api/jobs", json=body), "unsupported_architecture")["detail"]
    )


async def test_seq_len_beyond_the_model_is_refused(customer: Any, base_model_id: str) -> None:
    body = await customer.job_body(base_model_id, hyperparams={"seq_len": 2048})
    errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    assert errors[0]["pointer"] == "/hyperparams/seq_len"


async def test_a_job_from_claim_to_result_to_download(customer: Any, base_model_id: str, pool: Pool) -> None:
    created = (await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))).json()
    path = f"/api/jobs/{created['id']}"
    problem(await customer.send("GET", f"{path}/result"), "result_not_ready")
    attempt = await claim(pool, created["id"])
    assert (await customer.send("GET", path)).json()["status"] == "provisioning"
    point = {"ts": "2026-06-04T02:30:00Z", "step": 7, "cycle": 1, "phase": "train", "loss": 2.5, "lr": 1e-4}
    point |= {"throughput": 4.0, "vram_gb": 0.0, "grad_norm": 1.0}
    async with pool.acquire() as conn:
        await attempts.append_events(conn, attempt, [WorkerEvent(1, "phase", {"phase": "training"})], "training")
        await attempts.append_events(conn, attempt, [WorkerEvent(2, "metrics", point)])
    running = (await customer.send("GET", path)).json()
    assert (running["status"], running["progress"]["step"]) == ("running", 7)
    metrics = (await customer.send("GET", f"{path}/metrics?since_step=0")).json()
    assert metrics == {"job_id": created["id"], "count": 1, "latest_step": 7, "points": [point]}
    assert (await customer.send("GET", f"{path}/metrics?since_step=7")).json()["points"] == []
    await complete(pool, attempt)
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
        await attempts.fail(conn, await claim(pool, created["id"]), "nonfinite_loss", "The loss is not a number.")
    error = (await customer.send("GET", f"/api/jobs/{created['id']}")).json()["error"]
    assert (error["code"], error["message"]) == ("nonfinite_loss", "The loss is not a number.")


async def test_events_as_pages_and_as_a_stream_that_resumes(customer: Any, base_model_id: str, pool: Pool) -> None:
    created = (await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))).json()
    path = f"/api/jobs/{created['id']}/events"
    await complete(pool, await claim(pool, created["id"]))
    events = (await customer.send("GET", path)).json()
    assert [(event["seq"], event["type"]) for event in events] == [(1, "queued"), (2, "claimed"), (3, "completed")]
    assert [event["seq"] for event in (await customer.send("GET", f"{path}?after=1&limit=1")).json()] == [2]
    accept = {"Accept": "text/event-stream"}
    whole = (await customer.send("GET", path, headers=accept)).text
    assert whole.count("\nevent: ") == 3
    rest = (await customer.send("GET", path, headers=accept | {"Last-Event-ID": "2"})).text
    assert "id: 3\nevent: completed\n" in rest
    assert rest.count("\nevent: ") == 1


async def test_a_stream_wakes_for_new_events(customer: Any, base_model_id: str, pool: Pool) -> None:
    created = (await customer.send("POST", "/api/jobs", json=await customer.job_body(base_model_id))).json()
    accept = {"Accept": "text/event-stream"}
    stream = asyncio.create_task(customer.send("GET", f"/api/jobs/{created['id']}/events", headers=accept))
    await asyncio.sleep(0.2)
    await customer.send("POST", f"/api/jobs/{created['id']}/cancel")
    text = (await asyncio.wait_for(stream, 10)).text
    assert text.endswith("event: cancelled\ndata: {}\n\n")


async def test_lists_are_newest_first_and_link_to_the_next_page(customer: Any, base_model_id: str) -> None:
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


# -- uploads and datasets --------------------------------------------------------------------------------------------


async def test_upload_then_dataset(customer: Any) -> None:
    asked = {"filename": "../train.jsonl", "content_type": "application/jsonl"}
    presigned = (await customer.send("POST", "/api/uploads/presign", json=asked)).json()
    assert list(presigned) == ["upload_id", "key", "url", "method"]
    assert presigned["key"].startswith("tmp/")
    assert presigned["key"].endswith("/train.jsonl")
    wanted = {"upload_ids": [presigned["upload_id"]]}
    problem(await customer.send("POST", "/api/datasets", json=wanted), "upload_missing")
    async with httpx.AsyncClient() as web:
        wrong = await web.put(presigned["url"], content=b"x", headers={"Content-Type": "text/html"})
        assert wrong.status_code == 403, "the content type is signed"
        headers = {"Content-Type": "application/jsonl"}
        assert (await web.put(presigned["url"], content=b'{"text": "a"}\n', headers=headers)).status_code == 200
    created = await customer.send("POST", "/api/datasets", json=wanted)
    assert created.status_code == 201
    dataset = created.json()
    assert (dataset["name"], dataset["version"], dataset["status"]) == ("train", "v1", "validating")
    assert (await customer.send("GET", f"/api/datasets/{dataset['id']}")).json() == dataset
    problem(await customer.send("POST", "/api/datasets", json=wanted), "upload_consumed")
    assert (await customer.send("GET", "/api/jobs")).json() == [], "ingest is internal"


async def test_uploads_of_others_and_unknown_ones_are_named(customer: Any, new_customer: NewCustomer) -> None:
    stranger = await new_customer()
    asked = {"filename": "a.txt", "content_type": "text/plain"}
    presigned = (await customer.send("POST", "/api/uploads/presign", json=asked)).json()
    wanted = {"upload_ids": [presigned["upload_id"], str(uuid4())]}
    errors = problem(await stranger.send("POST", "/api/datasets", json=wanted), "not_found")["errors"]
    assert [error["pointer"] for error in errors] == ["/upload_ids/0", "/upload_ids/1"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a b.txt", "a_b.txt"), ("..", "file"), ("C:\\x\\y.jsonl", "y.jsonl"), ("/etc/passwd", "passwd"), ("é", "_")],
)
def test_file_names_are_sanitised(given: str, kept: str) -> None:
    assert sanitised(given) == kept


# -- pricing ---------------------------------------------------------------------------------------------------------


async def test_the_estimate_of_the_manual(customer: Any) -> None:
    asked = {"params_before": 70_000_000_000, "params_after": 90_000_000_000, "train_steps": 5000, "seq_len": 256}
    estimate = (await customer.send("POST", "/api/pricing/estimate", json=asked)).json()
    assert estimate == {
        "total_usd": 557.6,
        "unit": "1M-tokens",
        "qty": 1.28,
        "line_items": [
            {"label": "training", "qty": 1280000, "unit": "1M-tokens", "rate": 45.0, "amount": 57.6},
            {"label": "growth", "qty": 20000000000, "unit": "params", "rate": 25.0, "amount": 500.0},
        ],
    }
    asked = {"type": "contract", "params_before": 5_000_000_000}
    assert (await customer.send("POST", "/api/pricing/estimate", json=asked)).json()["total_usd"] == 20.0
    asked = {"params_before": 1_500_000_000, "params_after": 2_360_000_000, "turns": 2}
    example = (await customer.send("POST", "/api/pricing/estimate", json=asked)).json()
    assert example["total_usd"] == pytest.approx(21.5 + 9.216)
    asked = {"params_before": 2, "params_after": 1}
    problem(await customer.send("POST", "/api/pricing/estimate", json=asked), "validation_failed")


# -- keys, scopes, errors --------------------------------------------------------------------------------------------


async def test_keys_are_shown_once_and_revoked_at_once(customer: Any, pool: Pool) -> None:
    created = await customer.send("POST", "/api/keys", json={"name": "ci", "scopes": ["read"]})
    assert created.status_code == 201
    assert list(created.json()) == ["id", "prefix", "scopes", "secret"]
    secret = created.json()["secret"]
    assert secret.startswith("fusion_live_")
    keys = (await customer.send("GET", "/api/keys")).json()
    assert list(keys[0]) == ["id", "name", "prefix", "scopes", "last_used_at", "revoked", "created_at"]
    assert secret not in str(keys)
    stored = await pool.fetch("select api_keys::text as row from api_keys")
    assert all(secret not in row["row"] for row in stored)
    bearer = {"Authorization": f"Bearer {secret}"}
    assert (await customer.send("GET", "/api/jobs", headers=bearer)).status_code == 200
    assert (await customer.send("DELETE", f"/api/keys/{created.json()['id']}")).status_code == 204
    problem(await customer.send("GET", "/api/jobs", headers=bearer), "unauthorized")
    problem(await customer.send("DELETE", f"/api/keys/{uuid4()}"), "not_found")


async def test_a_key_cannot_make_a_stronger_one(new_customer: NewCustomer) -> None:
    weak = await new_customer("train")
    asked = {"name": "strong", "scopes": ["models", "train"]}
    problem(await weak.send("POST", "/api/keys", json=asked), "forbidden_scope")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer fusion_live_unknown", "Basic abc", "Bearer " + "x" * 500])
async def test_no_key_no_answer(http: httpx.AsyncClient, header: str) -> None:
    response = await http.get("/api/jobs", headers={"Authorization": header} if header else {})
    problem(response, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


def test_every_operation_asks_for_a_scope() -> None:
    assert all(operation.guards for operation in OPERATIONS)


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("train", {"POST /api/jobs", "GET /api/jobs"}),
        ("read", {"GET /api/jobs", "GET /api/models", "GET /api/datasets", "GET /api/keys"}),
        ("datasets", {"POST /api/uploads/presign", "POST /api/datasets", "GET /api/datasets"}),
        ("models", {"GET /api/models"}),
        ("billing", {"POST /api/pricing/estimate"}),
    ],
)
async def test_each_scope_opens_its_operations_only(new_customer: NewCustomer, scope: str, allowed: set[str]) -> None:
    customer = await new_customer(scope)
    every = {"POST /api/jobs", "GET /api/jobs", "GET /api/models", "GET /api/datasets", "POST /api/uploads/presign"}
    every |= {"POST /api/datasets", "GET /api/keys"}
    for operation in sorted(every | allowed):
        method, path = operation.split()
        status = (await customer.send(method, path, json={} if method == "POST" else None)).status_code
        assert (status != 403) == (operation in allowed), operation


async def test_broken_bodies_large_bodies_wrong_methods_and_unknown_paths(customer: Any) -> None:
    json = {"Content-Type": "application/json"}
    problem(await customer.send("POST", "/api/jobs", content=b"{", headers=json), "malformed_body")
    problem(await customer.send("POST", "/api/jobs", content=b" " * 2**21, headers=json), "payload_too_large")
    problem(await customer.send("PUT", "/api/jobs"), "method_not_allowed")
    problem(await customer.send("GET", "/api/nothing"), "not_found")
    problem(await customer.send("GET", "/api/jobs/not-a-uuid"), "not_found")


async def test_request_ids_are_kept_or_minted(http: httpx.AsyncClient) -> None:
    kept = await http.get("/health", headers={"x-request-id": "client-id-12345"})
    assert kept.headers["x-request-id"] == "client-id-12345"
    minted = await http.get("/health", headers={"x-request-id": "bad id\t"})
    assert len(minted.headers["x-request-id"]) == 32


async def test_health_readiness_and_the_document(
    http: httpx.AsyncClient, stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await http.get("/health")).json() == {"status": "ok"}
    assert (await http.get("/ready")).json() == {"status": "ready"}
    document = (await http.get("/api/docs/openapi.json")).json()
    assert {"/api/jobs", "/api/models/{model_id}/download", "/api/uploads/presign"} <= set(document["paths"])
    stack.processes.stop("s3")
    try:
        problem(await http.get("/ready"), "not_ready")
    finally:
        stack.start_s3()


async def test_a_fault_of_ours_shows_nothing_but_an_id(customer: Any, pool: Pool) -> None:
    await pool.execute("alter table jobs rename to jobs_gone")
    body = problem(await customer.send("GET", "/api/jobs"), "internal")
    assert "jobs_gone" not in str(body)
