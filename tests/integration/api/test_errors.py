"""What goes wrong, and what every answer carries: one problem a code, request ids, one log line a request."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from fusion_api.app import OPERATIONS
from fusion_core.db.pool import Pool
from fusion_core.problems import PROBLEMS

Problem = Callable[[httpx.Response, str], Any]
JSON = {"Content-Type": "application/json"}


async def test_broken_bodies_large_bodies_wrong_methods_and_unknown_paths(customer: Any, problem: Problem) -> None:
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
    http: httpx.AsyncClient, stack: Any, monkeypatch: pytest.MonkeyPatch, problem: Problem
) -> None:
    assert (await http.get("/health")).json() == {"status": "ok"}
    assert (await http.get("/ready")).json() == {"status": "ready"}
    document = (await http.get("/api/docs/openapi.json")).json()
    assert {"/api/jobs", "/api/models/{model_id}/download", "/api/uploads/presign"} <= set(document["paths"])
    alone = await http.get("/api/openapi.json")
    assert alone.json() == document
    assert alone.headers["content-type"].startswith("application/vnd.oai.openapi+json")
    stack.processes.stop("s3")
    try:
        problem(await http.get("/ready"), "not_ready")
        assert (await http.get("/ready/postgres")).json() == {"status": "ready"}, "jobs are served all the same"
    finally:
        stack.start_s3()


async def test_a_fault_of_ours_shows_nothing_but_an_id(customer: Any, pool: Pool, problem: Problem) -> None:
    await pool.execute("alter table jobs rename to jobs_gone")
    body = problem(await customer.send("GET", "/api/jobs"), "internal")
    assert "jobs_gone" not in str(body)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"type": "\xff"}',
        b'{"type": "\\ud800"}',
        b'{"lr": NaN}',
        b"{} {}",
    ],
    ids=["empty", "cut", "deep list", "deep object", "not UTF-8", "half a surrogate", "NaN", "two documents"],
)
async def test_what_is_not_json_is_malformed(customer: Any, problem: Problem, content: bytes) -> None:
    problem(await customer.send("POST", "/api/jobs", content=content, headers=JSON), "malformed_body")


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b'"a"'])
async def test_what_is_not_an_object_is_invalid(customer: Any, problem: Problem, content: bytes) -> None:
    errors = problem(await customer.send("POST", "/api/jobs", content=content, headers=JSON), "validation_failed")
    assert errors["errors"] == [{"pointer": "", "detail": "expected an object"}]


async def test_types_are_jsons_own(customer: Any, base_model_id: str, problem: Problem) -> None:
    body = await customer.job_body(base_model_id, hyperparams={"turns": "2", "lr": True, "seed": None, "cycles": 1.5})
    errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    named = {error["pointer"] for error in errors}
    assert named == {"/hyperparams/turns", "/hyperparams/lr", "/hyperparams/seed", "/hyperparams/cycles"}
    whole = await customer.job_body(base_model_id, hyperparams={"turns": 2.0})
    assert (await customer.send("POST", "/api/jobs", json=whole)).status_code == 201


async def test_every_bad_item_of_a_list_is_named(customer: Any, problem: Problem) -> None:
    asked = {"name": "", "scopes": ["read", "write", "train", 3]}
    errors = problem(await customer.send("POST", "/api/keys", json=asked), "validation_failed")["errors"]
    assert [error["pointer"] for error in errors] == ["/name", "/scopes/1", "/scopes/3"]
    assert "known: train, read, datasets, models, billing" in errors[1]["detail"]


@pytest.mark.parametrize("character", ["\0", "\n", "\x7f"])
async def test_names_hold_no_control_characters(
    customer: Any, base_model_id: str, problem: Problem, character: str
) -> None:
    text = f"a{character}"
    body = await customer.job_body(base_model_id, idempotency_key=text, hyperparams={"output_name": text})
    errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    assert {error["pointer"] for error in errors} == {"/idempotency_key", "/hyperparams/output_name"}
    asked = {"name": text, "scopes": ["read"]}
    problem(await customer.send("POST", "/api/keys", json=asked), "validation_failed")


async def test_pointers_are_escaped_and_not_endless(customer: Any, problem: Problem) -> None:
    body = {"type": "train", "a/b~c": 1} | {f"unknown{number}": 1 for number in range(1000)}
    errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    assert errors[0]["pointer"] == "/a~1b~0c"
    assert len(errors) == 100


async def test_a_step_beyond_every_job_is_refused(customer: Any, base_model_id: str, problem: Problem) -> None:
    path = f"/api/jobs/{await customer.submit(base_model_id)}/metrics?since_step={2**31}"
    problem(await customer.send("GET", path), "validation_failed")


async def test_a_wrong_method_is_told_the_right_ones(customer: Any, problem: Problem) -> None:
    response = await customer.send("PUT", "/api/jobs")
    problem(response, "method_not_allowed")
    assert {"GET", "POST"} <= set(response.headers["allow"].split(", "))


async def test_a_store_that_is_away_is_503_with_a_time_to_come_back(
    customer: Any, stack: Any, problem: Problem
) -> None:
    asked = {"filename": "a.txt", "content_type": "text/plain"}
    upload_id = (await customer.send("POST", "/api/uploads/presign", json=asked)).json()["upload_id"]
    stack.processes.stop("s3")
    try:
        response = await customer.send("POST", "/api/datasets", json={"upload_ids": [upload_id]})
    finally:
        stack.start_s3()
    problem(response, "not_ready")
    assert int(response.headers["retry-after"]) > 0


async def test_one_log_line_a_request_routed_or_not(customer: Any, http: httpx.AsyncClient) -> None:
    requests = [("GET", "/api/jobs", 200), ("GET", "/api/nothing", 404), ("PUT", "/api/jobs", 405)]
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        for method, path, _ in requests:
            await customer.send(method, path, headers={"x-request-id": "my-request-1"})
        await http.get("/api/jobs", headers={"Authorization": "Bearer fusion_live_wrong"})
    logged = [line for line in lines if line["event"] == "request"]
    assert [(line["method"], line["path"], line["status"]) for line in logged] == [*requests, ("GET", "/api/jobs", 401)]
    assert [line["request_id"] for line in logged[:3]] == ["my-request-1"] * 3
    assert logged[0]["account_id"] == str(customer.account_id)
    assert "account_id" not in logged[3], "nothing is left over from the request before"
    assert customer.secret not in str(lines)
    assert "fusion_live_wrong" not in str(lines)


async def test_the_document_has_every_operation(http: httpx.AsyncClient) -> None:
    response = await http.get("/api/openapi.json")
    assert response.headers["content-type"].startswith("application/vnd.oai.openapi+json")
    document = response.json()
    listed = {(method, path) for path, methods in document["paths"].items() for method in methods}
    paths = {f"/api{re.sub(r':[a-z]+}', '}', path)}" for operation in OPERATIONS for path in operation.paths}
    assert paths | {"/health", "/ready", "/ready/postgres"} == {path for _, path in listed}
    assert len(listed) == len(OPERATIONS) + 3
    assert (await http.get("/api/docs")).status_code == 200


def test_every_code_of_the_api_is_met_by_a_test() -> None:
    """Those that operators meet, too, which are of the same registry."""
    folders = (Path(__file__).parent, Path(__file__).parents[1] / "admin")
    text = "".join(path.read_text() for folder in folders for path in folder.glob("test_*.py"))
    codes = [code for code, known in PROBLEMS.items() if known.status is not None]
    assert [code for code in codes if not re.search(rf'"{code}"\)', text)] == []
