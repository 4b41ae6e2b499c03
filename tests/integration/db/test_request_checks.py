"""What a job was asked for is checked whenever it is written, and costs the updates of its life nothing."""

from typing import Any

import asyncpg
import pytest

FAULTS = [
    ("jobs_type", "type = 'bake'"),
    ("jobs_inputs", "dataset_id = null"),
    ("jobs_inputs", "base_model_id = null"),
    ("jobs_inputs", "type = 'contract'"),
    ("jobs_inputs", "type = 'ingest'"),
    ("jobs_key", "idempotency_key = null"),
    ("jobs_key", "request_sha256 = null"),
    ("jobs_idempotency_key", "idempotency_key = ''"),
    ("jobs_idempotency_key", "idempotency_key = repeat('x', 256)"),
    ("jobs_request_sha256", "request_sha256 = 'x'"),
    ("jobs_price", "price_version = null"),
    ("jobs_estimate", "estimate = null"),
    ("jobs_spec_version", "spec_version = 0"),
    ("jobs_pool", "pool = ''"),
    ("jobs_pool", "pool = repeat('x', 65)"),
    ("jobs_gpu_class", "gpu_class = ''"),
    ("jobs_gpu_count", "gpu_count = 0"),
    ("jobs_description", "description = ''"),
    ("jobs_description", "description = repeat('x', 1001)"),
    ("jobs_labels_check", "labels = '[]'"),
    ("jobs_traceparent", "traceparent = '00-1-1-01'"),
    ("jobs_start_step", "start_step = 3"),
    ("jobs_start_step", "start_step = -1"),
    ("jobs_start_step", "resumed_from = id"),
]


@pytest.mark.parametrize(("rule", "change"), FAULTS)
async def test_no_job_can_be_written_that_nobody_could_ask_for(world: Any, rule: str, change: str) -> None:
    job = await world.train()
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await world.pool.execute(f"update jobs set {change} where id = $1", job.id)  # noqa: S608 - from above
    assert refused.value.constraint_name == rule


async def test_a_new_job_is_checked_too(world: Any) -> None:
    job = await world.train()
    with pytest.raises(asyncpg.CheckViolationError, match="jobs_inputs"):
        await world.pool.execute(
            "insert into jobs (account_id, type, spec_version, spec, pool) select account_id, 'ingest', 1, '{}', 'x'"
            " from jobs where id = $1",
            job.id,
        )


async def test_what_customers_change_later_may_be_changed(world: Any) -> None:
    job = await world.train()
    changed = await world.pool.execute(
        "update jobs set description = 'x', labels = '{\"a\": \"b\"}', idempotency_key = 'another' where id = $1",
        job.id,
    )
    assert changed == "UPDATE 1"
