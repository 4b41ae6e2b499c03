"""The Python client has a method for every operation, sends what the document takes and reads what it answers.

A server that is made of the document alone: it checks each request against its schemas, and answers twice, with every
member that an answer may have and with none that it may lack.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import jsonschema_rs
import pytest
from fusion_client import Compute, Fusion

from tests.integration.api.documented import document, operation_of
from tests.unit.client.conftest import Answer, Asked, Server, as_json, sse

ID = "0198b3a2-6f00-7000-8000-000000000001"
TIME = "2030-01-01T00:00:00Z"

NOT_IN_THE_CLIENT = {
    "health": "for the machine that runs the api; needs no key",
    "ready": "for the load balancer",
    "ready_without_files": "for the load balancer",
}
NEVER_NULL = {"secret": "null answers a repeated request, and the client repeats none that makes a secret"}

Call = Callable[[Fusion], Any]
CALLS: dict[str, Call] = {
    "list_jobs": lambda c: c.list_jobs(labels={"a": "b"}, type="train", status="queued", base_model=ID, dataset=ID),
    "create_job": lambda c: c.create_job(
        base_model_id=ID, dataset_id=ID, priority="high", compute=Compute(gpu_class="h100", gpu_count=8)
    ),
    "get_job": lambda c: c.get_job(ID),
    "cancel_job": lambda c: c.cancel_job(ID),
    "stop_job": lambda c: c.stop_job(ID),
    "resume_job": lambda c: c.resume_job(ID, ID),
    "list_checkpoints": lambda c: c.list_checkpoints(ID),
    "get_metrics": lambda c: c.metrics(ID, since_step=1, points=4),
    "get_result": lambda c: c.result(ID),
    "get_events": lambda c: list(c.events(ID)),
    "list_base_models": lambda c: c.list_base_models(),
    "get_base_model": lambda c: c.get_base_model(ID),
    "list_models": lambda c: c.list_models(),
    "get_model": lambda c: c.get_model(ID),
    "delete_model": lambda c: c.delete_model(ID),
    "change_model": lambda c: c.change_model(ID, name="x", expires_at=None),
    "get_lineage": lambda c: c.lineage(ID),
    "download_model": lambda c: c.download_manifest(ID),
    "list_datasets": lambda c: c.list_datasets(),
    "create_dataset": lambda c: c.create_dataset([ID], "x", "skip"),
    "get_dataset": lambda c: c.get_dataset(ID),
    "delete_dataset": lambda c: c.delete_dataset(ID),
    "preview_dataset": lambda c: c.preview_dataset(ID, rows=3),
    "get_dataset_report": lambda c: c.get_dataset_report(ID),
    "count_tokens": lambda c: c.count_tokens(ID, ID),
    "presign_upload": lambda c: c.presign("a.jsonl", "application/jsonl"),
    "begin_multipart": lambda c: c.uploads.begin("a.jsonl", "application/jsonl", 2**30, 2**26),
    "get_upload": lambda c: c.uploads.get(ID),
    "abort_upload": lambda c: c.uploads.abort(ID),
    "sign_parts": lambda c: c.uploads.sign_parts(ID, [1, 2]),
    "complete_upload": lambda c: c.uploads.complete(ID),
    "get_prices": lambda c: c.get_prices(),
    "estimate_price": lambda c: c.estimate({"params_before": 10, "params_after": 13}),
    "recommend": lambda c: c.recommend(ID, ID, turns=2),
    "list_keys": lambda c: c.list_keys(),
    "create_key": lambda c: c.create_key("ci", ["read"], datetime(2030, 1, 1, tzinfo=UTC)),
    "revoke_key": lambda c: c.revoke_key(ID),
    "list_webhooks": lambda c: c.webhooks.list(),
    "create_webhook": lambda c: c.webhooks.create("https://example.com/", ["job.completed"], "x"),
    "get_webhook": lambda c: c.webhooks.get(ID),
    "delete_webhook": lambda c: c.webhooks.delete(ID),
    "change_webhook": lambda c: c.webhooks.change(ID, enabled=False),
    "rotate_secret": lambda c: c.webhooks.rotate(ID),
    "send_test": lambda c: c.webhooks.test(ID),
    "list_deliveries": lambda c: c.webhooks.deliveries(ID, status="failed"),
    "get_delivery": lambda c: c.webhooks.get_delivery(ID, ID),
    "replay_delivery": lambda c: c.webhooks.replay(ID, ID),
    "get_account": lambda c: c.get_account(),
    "change_account": lambda c: c.change_account(spend_limit_usd=500.0, spend_warning_usd=None),
    "get_overview": lambda c: c.get_overview(days=7),
    "get_usage": lambda c: c.get_usage(days=7),
    "list_ledger": lambda c: c.list_ledger(job_id=ID),
}


def test_every_operation_has_a_method() -> None:
    operations = {entry["operationId"] for methods in document()["paths"].values() for entry in methods.values()}
    assert operations - NOT_IN_THE_CLIENT.keys() == CALLS.keys(), "add the method, and its call here"
    assert not NOT_IN_THE_CLIENT.keys() & CALLS.keys()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize("full", [True, False], ids=["everything", "nothing more"])
@pytest.mark.parametrize("name", CALLS)
def test_a_method_sends_and_reads_what_the_document_says(server: Server, name: str, full: bool) -> None:
    served: list[str] = []
    faults: list[str] = []

    def serve(asked: Asked) -> Answer:
        entry = operation_of(asked.method, httpx.URL(asked.path).path)
        assert entry is not None
        served.append(entry["operationId"])
        faults.extend(faults_of(entry, asked))
        return answer_of(entry, full)

    server.answer = serve  # type: ignore[method-assign]
    with Fusion(server.url, "fusion_live_test") as client:
        CALLS[name](client)
    assert served == [name]
    assert faults == []


def faults_of(entry: dict[str, Any], asked: Asked) -> list[str]:
    """What of a request the document does not know, or knows otherwise."""
    known = {one["name"] for one in entry.get("parameters", ()) if one["in"] == "query"}
    faults = [f"no parameter {one}" for one in httpx.URL(asked.path).params if one not in known]
    if asked.body:
        schema = entry["requestBody"]["content"]["application/json"]["schema"]
        faults += [str(error) for error in validator(schema).iter_errors(asked.json)]
    return faults


def answer_of(entry: dict[str, Any], full: bool) -> Answer:
    status, answer = next((s, a) for s, a in entry["responses"].items() if s.startswith("2"))
    if entry["operationId"] == "get_events":
        return Answer(200, sse(1, "completed"), {"Content-Type": "text/event-stream"})
    if "content" not in answer:
        return Answer(int(status))
    schema = answer["content"]["application/json"]["schema"]
    value = value_of(schema, full)
    validator(schema).validate(value)
    return as_json(value, int(status))


def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema | {"components": document()["components"]}, validate_formats=True)


def value_of(schema: dict[str, Any], full: bool) -> Any:
    """A value that fits: with all members and no null; or with those required alone, and null where that may be."""
    if "$ref" in schema:
        return value_of(document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]], full)
    if "anyOf" in schema:
        options = sorted(schema["anyOf"], key=lambda one: (one.get("type") == "null") is full)
        return value_of(options[0], full)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {
                name: value_of(member, full or name in NEVER_NULL)
                for name, member in schema.get("properties", {}).items()
                if full or name in schema.get("required", ())
            }
        case "array":
            return [value_of(schema["items"], full)] if full else []
        case "string":
            return {"date-time": TIME, "date": TIME[:10], "uuid": ID}.get(schema.get("format", ""), "x")
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
    return {}
