"""Every operation of the document, with another account's ids and with every other scope: also those to come."""

import re
from typing import Any
from uuid import uuid4

import pytest
from fusion_core.api_keys import SCOPES
from fusion_core.db.pool import queries

from tests.integration.api.documented import document

OPERATIONS = [
    (path, method, entry)
    for path, methods in document()["paths"].items()
    for method, entry in methods.items()
    if entry["security"]
]
PUBLIC = {"base_model_id"}  # ids of the catalog, which every account sees
UNKNOWN = "0198b3a2-6f00-7000-8000-00000000ffff"


def options_of(entry: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    """A body and a query that are valid; `ids` take the place of those in the example."""
    options: dict[str, Any] = {}
    required = [one["name"] for one in entry["parameters"] if one["in"] == "query" and one["required"]]
    if required:
        options["params"] = {name: ids.get(name, UNKNOWN) for name in required}
    if "requestBody" in entry:
        example = entry["requestBody"]["content"]["application/json"]["example"]
        fresh = {"idempotency_key": uuid4().hex} if "idempotency_key" in example else {}
        options["json"] = _with_ids(example, ids) | fresh
    return options


def _with_ids(body: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    plural = {f"{name}s": [value] for name, value in ids.items()}
    return {name: ids.get(name, plural.get(name, value)) for name, value in body.items()}


def names_ids(path: str, entry: dict[str, Any]) -> bool:
    """Does the operation work on something that belongs to an account?"""
    named = set(re.findall(r"\{(\w+)\}", path)) | {
        name
        for name in entry.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example", {})
        if re.search(r"_ids?$", name)
    }
    return bool(named - PUBLIC)


@pytest.fixture
async def strangers_ids(new_customer: Any, base_model_id: str) -> dict[str, str]:
    """One of everything that belongs to another account."""
    stranger = await new_customer()
    model_id = await stranger.model(base_model_id)
    upload = {"filename": "a.jsonl", "content_type": "application/jsonl"}
    presigned = (await stranger.send("POST", "/api/uploads/presign", json=upload)).json()
    [job] = (await stranger.send("GET", "/api/jobs")).json()
    [key, *_] = (await stranger.send("GET", "/api/keys")).json()
    return {
        "job_id": job["id"],
        "model_id": model_id,
        "source_model_id": model_id,
        "dataset_id": await stranger.dataset(),
        "upload_id": presigned["upload_id"],
        "key_id": key["id"],
        "webhook_id": str(await webhook_of(stranger)),
        "delivery_id": UNKNOWN,
        "checkpoint_id": UNKNOWN,
        "base_model_id": base_model_id,
    }


async def webhook_of(stranger: Any) -> Any:
    row = await queries.insert_webhook(
        stranger.pool,
        account_id=stranger.account_id,
        url="https://example.com/",
        event_types=["job.completed"],
        description="",
    )
    return row["id"]


async def test_another_accounts_ids_look_like_absent_ones(customer: Any, strangers_ids: dict[str, str]) -> None:
    private = {value for name, value in strangers_ids.items() if name not in PUBLIC and value != UNKNOWN}
    for path, method, entry in OPERATIONS:
        unknown = set(re.findall(r"\{(\w+)\}", path)) - strangers_ids.keys()
        assert not unknown, f"add one of another account's to strangers_ids: {unknown}"
        answer = await customer.send(method, path.format(**strangers_ids), **options_of(entry, strangers_ids))
        if names_ids(path, entry):
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (
                entry["operationId"],
                answer.text,
            )
        else:
            assert answer.status_code < 500, (entry["operationId"], answer.text)
            assert [one for one in private if one in answer.text] == [], entry["operationId"]


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_scope_opens_its_operations_and_no_other(scope: str, customer: Any) -> None:
    await customer.use_key(scope)
    for path, method, entry in OPERATIONS:
        enough = {one for alternative in entry["security"] for one in alternative["key"]}
        ids = dict.fromkeys(re.findall(r"\{(\w+)\}", path), UNKNOWN)
        answer = await customer.send(method, path.format(**ids), **options_of(entry, {}))
        refused = answer.status_code == 403 and "this needs the scope" in answer.json()["detail"]
        assert refused == (scope not in enough), (entry["operationId"], answer.text)
