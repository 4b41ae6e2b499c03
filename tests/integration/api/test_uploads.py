"""Uploads in one PUT and in parts, against the real gateway."""

import asyncio
from typing import Any

import httpx
import pytest

MIB = 2**20


async def put(url: str, content: bytes, content_type: str | None = None) -> httpx.Response:
    headers = {} if content_type is None else {"content-type": content_type}
    async with httpx.AsyncClient(timeout=60) as web:
        return await web.put(url, content=content, headers=headers)


async def begin(customer: Any, size: int, **members: Any) -> Any:
    body = {"filename": "rows.jsonl", "size": size, "part_size": 5 * MIB} | members
    answer = await customer.send("POST", "/api/uploads/multipart", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_declared_size_and_the_content_type_are_signed(customer: Any) -> None:
    body = {"filename": "train.jsonl", "content_type": "application/jsonl", "size": 14}
    upload = (await customer.send("POST", "/api/uploads/presign", json=body)).json()
    assert list(upload) == ["upload_id", "key", "url", "method"]
    assert (await put(upload["url"], b'{"text": "ab"}x', "application/jsonl")).status_code == 403
    assert (await put(upload["url"], b'{"text": "ab"}', "text/html")).status_code == 403
    assert (await put(upload["url"], b'{"text": "ab"}', "application/jsonl")).status_code == 200
    shown = (await customer.send("GET", f"/api/uploads/{upload['upload_id']}")).json()
    assert (shown["status"], shown["missing"]) == ("complete", [])


async def test_parts_resume_where_they_broke_off(customer: Any, storage: Any, problem: Any) -> None:
    content = bytes(range(256)) * 4096 * 11
    upload = await begin(customer, len(content))
    path = f"/api/uploads/{upload['upload_id']}"
    assert (upload["status"], upload["parts"], upload["missing"]) == ("waiting", 3, [1, 2, 3])
    signed = (await customer.send("POST", f"{path}/parts", json={})).json()
    assert [(part["part_number"], part["size"]) for part in signed] == [(1, 5 * MIB), (2, 5 * MIB), (3, MIB)]
    pieces = [content[:5 * MIB], content[5 * MIB : 10 * MIB], content[10 * MIB :]]  # fmt: skip
    assert (await put(signed[0]["url"], pieces[0])).status_code == 200
    assert (await put(signed[1]["url"], pieces[1][:-1])).status_code == 200
    shown = (await customer.send("GET", path)).json()
    assert (shown["status"], shown["arrived"]) == ("receiving", [{"part_number": 1, "size": 5 * MIB}])
    assert shown["missing"] == [2, 3], "a part that is cut short has not arrived"
    found = problem(await customer.send("POST", f"{path}/complete"), "upload_incomplete")
    assert "2 of 3 parts are missing: 2, 3" in found["detail"]
    again = (await customer.send("POST", f"{path}/parts", json={})).json()
    for part, piece in zip(again, pieces[1:], strict=True):
        assert (await put(part["url"], piece)).status_code == 200
    answers = await asyncio.gather(*(customer.send("POST", f"{path}/complete") for _ in range(4)))
    assert [answer.json()["status"] for answer in answers] == ["complete"] * 4
    assert await storage.get_bytes(upload["key"]) == content
    made = await customer.send("POST", "/api/datasets", json={"upload_ids": [upload["upload_id"]]})
    assert made.status_code == 201
    assert (await customer.send("GET", path)).json()["status"] == "consumed"
    problem(await customer.send("POST", f"{path}/parts", json={}), "upload_consumed")
    problem(await customer.send("DELETE", path), "upload_consumed")


async def test_an_aborted_upload_is_gone(customer: Any, problem: Any) -> None:
    upload = await begin(customer, 6 * MIB)
    path = f"/api/uploads/{upload['upload_id']}"
    (first, _) = (await customer.send("POST", f"{path}/parts", json={})).json()
    assert (await customer.send("DELETE", path)).status_code == 204
    problem(await customer.send("GET", path), "not_found")
    assert (await put(first["url"], b"x")).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/api/uploads/multipart", {"filename": "a", "size": 5 * 2**40, "part_size": 5 * MIB}, "/part_size"),
        ("/api/uploads/multipart", {"filename": "a", "size": 1, "part_size": 1}, "/part_size"),
        ("/api/uploads/multipart", {"filename": "a"}, "/size"),
        ("/api/uploads/presign", {"filename": "a", "size": 0}, "/size"),
    ],
)
async def test_sizes_that_s3_does_not_take(customer: Any, problem: Any, path: str, body: Any, pointer: str) -> None:
    found = problem(await customer.send("POST", path, json=body), "validation_failed")
    assert [error["pointer"] for error in found["errors"]] == [pointer]


async def test_a_part_beyond_the_last_is_named(customer: Any, problem: Any) -> None:
    upload = await begin(customer, 6 * MIB)
    answer = await customer.send("POST", f"/api/uploads/{upload['upload_id']}/parts", json={"part_numbers": [1, 3]})
    assert problem(answer, "validation_failed")["errors"] == [
        {"pointer": "/part_numbers/1", "detail": "the last part is 2"}
    ]


async def test_quotas(customer: Any, problem: Any, new_customer: Any) -> None:
    found = problem(
        await customer.send("POST", "/api/uploads/multipart", json={"filename": "a", "size": 2**40 + 1}),
        "quota_exceeded",
    )
    assert found["errors"][0]["pointer"] == "/size"
    await customer.pool.execute(
        "insert into uploads (account_id, filename, content_type, s3_key, expires_at)"
        " select $1, 'a', 'a/b', 'tmp/' || n, now() + interval '1 hour' from generate_series(1, 1000) n",
        customer.account_id,
    )
    problem(await customer.send("POST", "/api/uploads/presign", json={"filename": "a"}), "quota_exceeded")
    other = await new_customer()
    assert (await other.send("POST", "/api/uploads/presign", json={"filename": "a"})).status_code == 200
