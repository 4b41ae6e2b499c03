"""Races of customers with themselves, over the whole API: what is checked and what is written are one step."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

Problem = Callable[[httpx.Response, str], Any]


async def uploaded(customer: Any, storage: Any) -> str:
    """The id of an upload whose file is there."""
    asked = {"filename": "rows.txt", "content_type": "text/plain"}
    presigned = (await customer.send("POST", "/api/uploads/presign", json=asked)).json()
    async with httpx.AsyncClient() as web:
        put = await web.put(presigned["url"], content=b"a row\n", headers={"Content-Type": "text/plain"})
    assert put.status_code == 200
    return str(presigned["upload_id"])


async def test_a_dataset_and_the_jobs_that_read_it_cannot_lose_each_other(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    for attempt in range(4):
        body = await customer.job_body(base_model_id)
        requests = [
            customer.send("POST", "/api/jobs", json=body | {"idempotency_key": f"{attempt}-{number}"})
            for number in range(6)
        ]
        requests.insert(attempt, customer.send("DELETE", f"/api/datasets/{body['dataset_id']}"))
        jobs = list(await asyncio.gather(*requests))
        deleted = jobs.pop(attempt)
        created = [job for job in jobs if job.status_code == 201]
        assert {job.status_code for job in jobs} <= {201, 404}
        if deleted.status_code == 204:
            assert created == []
        else:
            problem(deleted, "in_use")
            assert created != []


async def test_names_at_once_are_versions_without_a_gap(customer: Any, storage: Any) -> None:
    uploads = [await uploaded(customer, storage) for _ in range(6)]
    answers = await asyncio.gather(
        *(customer.send("POST", "/api/datasets", json={"name": "texts", "upload_ids": [one]}) for one in uploads)
    )
    assert {answer.status_code for answer in answers} == {201}
    assert sorted(answer.json()["version"] for answer in answers) == ["v1", "v2", "v3", "v4", "v5", "v6"]


async def test_models_that_finish_at_once_under_one_name_are_versions(customer: Any, base_model_id: str) -> None:
    held = [await customer.claim(await customer.submit(base_model_id)) for _ in range(6)]
    await asyncio.gather(*(customer.complete(attempt) for attempt in held))
    models = (await customer.send("GET", "/api/models")).json()
    assert sorted(model["version"] for model in models) == ["v1", "v2", "v3", "v4", "v5", "v6"]


async def test_one_upload_becomes_one_dataset(customer: Any, storage: Any, problem: Problem) -> None:
    upload_id = await uploaded(customer, storage)
    answers = await asyncio.gather(
        *(customer.send("POST", "/api/datasets", json={"name": f"d{n}", "upload_ids": [upload_id]}) for n in range(6))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 5
    for answer in answers:
        if answer.status_code == 409:
            problem(answer, "upload_consumed")
    assert len((await customer.send("GET", "/api/datasets")).json()) == 1
