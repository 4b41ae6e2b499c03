"""Labels and descriptions, and lists of jobs by what they have in common."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx

NewCustomer = Callable[..., Awaitable[Any]]
Problem = Callable[[httpx.Response, str], Any]


async def ids(customer: Any, query: str) -> list[str]:
    response = await customer.send("GET", f"/api/jobs?{query}")
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()]


async def test_labels_and_a_description_are_shown_as_they_were_given(customer: Any, base_model_id: str) -> None:
    said = {"labels": {"team": "search", "cost-centre": "a/b 7"}, "description": "Größer, with é"}
    job_id = await customer.submit(base_model_id, **said)
    detail = (await customer.send("GET", f"/api/jobs/{job_id}")).json()
    (listed,) = (await customer.send("GET", "/api/jobs")).json()
    for shown in (detail, listed):
        assert {name: shown[name] for name in said} == said


async def test_bad_labels_are_named_one_by_one(customer: Any, base_model_id: str, problem: Problem) -> None:
    async def pointers(**said: Any) -> dict[str, str]:
        body = await customer.job_body(base_model_id, **said)
        errors = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
        return {error["pointer"]: error["detail"] for error in errors}

    found = await pointers(labels={"has space": "x", "a/b": 7, "ok": "", "long": "x" * 256}, description="")
    assert set(found) == {"/labels/has space", "/labels/a~1b", "/labels/ok", "/labels/long", "/description"}
    assert found["/labels/has space"].startswith("its name: ")
    assert set(await pointers(labels={f"k{n}": "v" for n in range(17)})) == {"/labels"}
    assert set(await pointers(labels=["team"])) == {"/labels"}


async def test_filters_that_no_job_can_meet_are_refused(customer: Any, problem: Problem) -> None:
    for query in ("label=team%3Da&label=team%3Db", "label=team%3D%00", "label=team%3Da%0Ab"):
        (error,) = problem(await customer.send("GET", f"/api/jobs?{query}"), "validation_failed")["errors"]
        assert error["pointer"] == "label"
    (error,) = problem(await customer.send("GET", "/api/jobs?satus=running"), "validation_failed")["errors"]
    assert error == {"pointer": "satus", "detail": "unknown parameter; did you mean 'status'?"}


async def test_each_filter_and_their_combination(customer: Any, new_customer: NewCustomer, base_model_id: str) -> None:
    dataset = await customer.dataset()
    search = await customer.submit(base_model_id, labels={"team": "search", "env": "test"}, dataset_id=dataset)
    ads = await customer.submit(base_model_id, labels={"team": "ads", "env": "test"}, dataset_id=dataset)
    tuned = await customer.submit(base_model_id, type="finetune", hyperparams={"steps": 10})
    stranger = await new_customer()
    await stranger.submit(base_model_id, labels={"team": "search", "env": "test"})
    await customer.claim(ads)
    await customer.send("POST", f"/api/jobs/{tuned}/cancel")
    assert await ids(customer, "") == [tuned, ads, search]
    assert await ids(customer, "type=finetune") == [tuned]
    assert await ids(customer, "status=queued") == [search]
    assert await ids(customer, "status=provisioning") == [ads]
    assert await ids(customer, "status=cancelled") == [tuned]
    assert await ids(customer, f"dataset={dataset}") == [ads, search]
    assert await ids(customer, f"base_model={base_model_id}&limit=2") == [tuned, ads]
    assert await ids(customer, "label=team%3Dsearch") == [search]
    assert await ids(customer, "label=env%3Dtest&label=team%3Dads") == [ads]
    assert await ids(customer, "label=env%3Dtest&status=queued&type=train") == [search]
    assert await ids(customer, "label=team%3Dsear") == []


async def test_an_interrupted_job_is_preempted_and_not_queued(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    await customer.pool.execute("update jobs set last_interruption = 'drain'")
    assert await ids(customer, "status=preempted") == [job_id]
    assert await ids(customer, "status=queued") == []


async def test_the_next_page_keeps_the_filter(customer: Any, base_model_id: str) -> None:
    jobs = [await customer.submit(base_model_id, labels={"team": "a&b"}) for _ in range(3)]
    await customer.submit(base_model_id)
    path, seen = "/api/jobs?label=team%3Da%26b&limit=1", []
    while path:
        response = await customer.send("GET", path)
        seen += [job["id"] for job in response.json()]
        path = response.links.get("next", {}).get("url", "")
    assert seen == jobs[::-1]


async def test_filters_that_mean_nothing_are_refused(customer: Any, problem: Problem) -> None:
    for query in ("status=done", "type=ingest", "dataset=7", "label=team", "label=%3Dx"):
        problem(await customer.send("GET", f"/api/jobs?{query}"), "validation_failed")
