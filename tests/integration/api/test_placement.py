"""A job goes to the smallest machine that has what it asks for, or is refused at once with what there is."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from fusion_core.db.pool import Pool

Problem = Callable[[httpx.Response, str], Any]


@pytest.fixture
async def pools(pool: Pool) -> None:
    for name, gpu_class, count in (("h100x8", "h100", 8), ("h100x1", "h100", 1), ("l4x1", "l4", 1), ("cpu", None, 0)):
        await pool.execute("insert into pools (name, gpu_class, gpu_count) values ($1, $2, $3)", name, gpu_class, count)


async def pool_of(customer: Any, job_id: str) -> str:
    name: str = await customer.pool.fetchval("select pool from jobs where id = $1", UUID(job_id))
    return name


@pytest.mark.usefixtures("pools")
@pytest.mark.parametrize(
    ("gpu_class", "count", "placed"),
    [("h100", 1, "h100x1"), ("h100", 2, "h100x8"), ("h100", 8, "h100x8"), ("l4", 1, "l4x1")],
)
async def test_the_smallest_pool_that_fits_is_chosen(
    customer: Any, base_model_id: str, gpu_class: str, count: int, placed: str
) -> None:
    compute = {"gpu_class": gpu_class, "gpu_count": count}
    job_id = await customer.submit(base_model_id, compute=compute, priority="high", hyperparams={"batch_size": 8})
    assert await pool_of(customer, job_id) == placed
    shown = (await customer.send("GET", f"/api/jobs/{job_id}")).json()
    assert (shown["compute"], shown["priority"]) == (compute, "high")


async def test_a_job_that_asks_for_nothing_goes_to_the_usual_machines(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    assert await pool_of(customer, job_id) == "h100x1"
    shown = (await customer.send("GET", f"/api/jobs/{job_id}")).json()
    assert (shown["compute"], shown["priority"]) == (None, "normal")


@pytest.mark.usefixtures("pools")
@pytest.mark.parametrize(
    ("gpu_class", "count", "pointer", "there"),
    [("h100", 16, "/compute/gpu_count", "1 x h100, 8 x h100"), ("b200", 1, "/compute/gpu_class", "1 x h100, 1 x l4")],
)
async def test_what_no_machine_has_is_refused_with_what_would_fit(
    customer: Any, base_model_id: str, problem: Problem, gpu_class: str, count: int, pointer: str, there: str
) -> None:
    body = await customer.job_body(base_model_id, compute={"gpu_class": gpu_class, "gpu_count": count})
    refused = problem(await customer.send("POST", "/api/jobs", json=body), "no_fitting_pool")
    assert there in refused["detail"]
    assert refused["errors"][0]["pointer"] == pointer
    assert await customer.pool.fetchval("select count(*) from jobs") == 0
    estimated = await customer.send("POST", "/api/pricing/estimate", json={"job": body})
    (error,) = problem(estimated, "no_fitting_pool")["errors"]
    assert error == {"pointer": f"/job{pointer}", "detail": refused["errors"][0]["detail"]}


@pytest.mark.usefixtures("pools")
async def test_a_batch_that_the_gpus_cannot_share_is_refused_before_it_is_queued(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    body = await customer.job_body(
        base_model_id, compute={"gpu_class": "h100", "gpu_count": 8}, hyperparams={"batch_size": 12}
    )
    (error,) = problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")["errors"]
    assert error["pointer"] == "/hyperparams/batch_size"
    assert "8 GPUs" in error["detail"]


async def test_half_a_machine_and_an_unknown_priority_are_refused(
    customer: Any, base_model_id: str, problem: Problem
) -> None:
    for changes in ({"compute": {"gpu_class": "h100"}}, {"priority": "urgent"}, {"priority": 5}):
        body = await customer.job_body(base_model_id, **changes)
        problem(await customer.send("POST", "/api/jobs", json=body), "validation_failed")
