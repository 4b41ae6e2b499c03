"""Idempotency-Key: every POST of the document takes it; what it made is made once, also by fifty clients at once."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx

KEY = {"Idempotency-Key": "once"}


async def test_every_post_documents_the_header(http: httpx.AsyncClient) -> None:
    document = (await http.get("/api/openapi.json")).json()
    posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
    missing = [
        path
        for path, operation in posts.items()
        if "Idempotency-Key" not in {parameter["name"] for parameter in operation.get("parameters", ())}
    ]
    assert len(posts) > 5
    assert missing == []


async def test_a_key_is_made_once_and_its_secret_shown_once(customer: Any, problem: Any) -> None:
    body = {"name": "ci", "scopes": ["read"]}
    answers = await asyncio.gather(*(customer.send("POST", "/api/keys", json=body, headers=KEY) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len([answer for answer in answers if answer.json()["secret"] is not None]) == 1
    assert len([answer for answer in answers if answer.headers.get("Idempotent-Replayed") == "true"]) == 49
    assert len((await customer.send("GET", "/api/keys")).json()) == 2
    problem(await customer.send("POST", "/api/keys", json=body | {"name": "b"}, headers=KEY), "idempotency_conflict")


async def test_requests_of_one_account_with_keys_of_their_own_do_not_deadlock(customer: Any) -> None:
    """Each has written its key, which refers to the account, when it asks for the account's lock."""
    headers = [{"Idempotency-Key": f"key-{number}"} for number in range(20)]
    presign, key = {"filename": "rows.jsonl"}, {"name": "ci", "scopes": ["read"]}
    answers = await asyncio.gather(
        *(customer.send("POST", "/api/uploads/presign", json=presign, headers=one) for one in headers),
        *(customer.send("POST", "/api/keys", json=key, headers=one) for one in headers),
    )
    assert [answer.status_code for answer in answers] == [200] * len(headers) + [201] * len(headers)


async def test_an_upload_is_presigned_anew_for_the_same_target(customer: Any) -> None:
    body = {"filename": "rows.jsonl", "content_type": "application/jsonl"}
    first, second = [
        (await customer.send("POST", "/api/uploads/presign", json=body, headers=KEY)).json() for _ in range(2)
    ]
    assert (first["upload_id"], first["key"]) == (second["upload_id"], second["key"])
    assert "X-Amz-Signature" in second["url"]
    stored = await customer.pool.fetch("select * from idempotency_keys")
    assert "http" not in str(stored)


async def test_a_dataset_is_made_once_also_after_its_upload_is_gone(customer: Any, storage: Any, problem: Any) -> None:
    upload = (await customer.send("POST", "/api/uploads/presign", json={"filename": "rows.jsonl"})).json()
    await storage.put_bytes(upload["key"], b'{"text": "a"}\n')
    body = {"upload_ids": [upload["upload_id"]]}
    first = await customer.send("POST", "/api/datasets", json=body, headers=KEY)
    await storage.delete([upload["key"]])
    second = await customer.send("POST", "/api/datasets", json=body, headers=KEY)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["Idempotent-Replayed"] == "true"
    other = await customer.send("POST", "/api/datasets", json=body, headers={"Idempotency-Key": "another"})
    problem(other, "upload_missing")


async def test_a_refused_request_leaves_its_key_unused(customer: Any, problem: Any) -> None:
    body = {"upload_ids": [str(uuid4())]}
    problem(await customer.send("POST", "/api/datasets", json=body, headers=KEY), "not_found")
    assert await customer.pool.fetchval("select count(*) from idempotency_keys") == 0


async def test_keys_of_two_accounts_are_two_keys(customer: Any, new_customer: Any) -> None:
    other = await new_customer()
    body = {"name": "ci", "scopes": ["read"]}
    ids = {(await one.send("POST", "/api/keys", json=body, headers=KEY)).json()["id"] for one in (customer, other)}
    assert len(ids) == 2


async def test_what_was_made_and_deleted_is_not_found_again(customer: Any, storage: Any, problem: Any) -> None:
    presign = {"filename": "rows.jsonl"}
    upload = (await customer.send("POST", "/api/uploads/presign", json=presign, headers=KEY)).json()
    await storage.put_bytes(upload["key"], b'{"text": "a"}\n')
    body = {"upload_ids": [upload["upload_id"]]}
    await customer.send("POST", "/api/datasets", json=body, headers=KEY)
    await customer.pool.execute("update datasets set status = 'deleted'")
    problem(await customer.send("POST", "/api/datasets", json=body, headers=KEY), "not_found")
    aborted = (
        await customer.send("POST", "/api/uploads/presign", json=presign, headers={"Idempotency-Key": "a"})
    ).json()
    await customer.send("DELETE", f"/api/uploads/{aborted['upload_id']}")
    again = await customer.send("POST", "/api/uploads/presign", json=presign, headers={"Idempotency-Key": "a"})
    problem(again, "not_found")
