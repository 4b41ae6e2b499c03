"""Every type of work through the daemon: what its trainer is handed, and what is published when it is done."""

import hashlib
from typing import Any
from uuid import UUID

import pytest
from fusion_core import s3_keys
from fusion_core.db.pool import queries
from fusion_core.db.rehearsal_pools import Base
from fusion_core.db.rows import JobRow
from fusion_core.storage import ObjectMissingError

from .conftest import Site, Start

POOL_CONTENT = b'{"ids":[1,2,3]}\n'
POOL_SHA256 = hashlib.sha256(POOL_CONTENT).hexdigest()


async def model_of(site: Site, job: JobRow) -> Any:
    return await queries.get_model(site.pool, account_id=job.account_id, model_id=job.output_model_id)


async def test_a_finetune_publishes_a_model_with_its_lineage(site: Site, start_daemon: Start) -> None:
    job_id = await site.finetune()
    await start_daemon()
    job = await site.reaches(job_id, "completed")
    model = await model_of(site, job)
    assert (model["name"], model["parent_model_id"]) == (f"model-{job_id}", None)
    assert model["base_model_id"] == job.base_model_id
    assert job.result is not None
    assert job.result["names"] == ["tiny", "data v1", f"model-{job_id}"]
    assert "grown" not in [kind for kind, _ in await site.events(job_id)]
    ledger = await site.pool.fetchrow("select amount_microusd, tokens from ledger where job_id = $1", job_id)
    assert tuple(ledger) == (2_000_000, 4 * 256)


async def test_a_contraction_starts_from_the_accounts_own_model_without_a_dataset(
    site: Site, start_daemon: Start
) -> None:
    grown_id = await site.train()
    await start_daemon()
    grown = await site.reaches(grown_id, "completed")
    job = await site.reaches(await site.contract(grown), "completed")
    model = await model_of(site, job)
    assert (model["parent_model_id"], model["base_model_id"]) == (grown.output_model_id, grown.base_model_id)
    assert job.result is not None
    assert job.result["names"] == ["grown", "", f"model-{job.id}"]
    ledger = await site.pool.fetchval("select amount_microusd from ledger where job_id = $1", job.id)
    assert ledger == 9_000_000


async def test_events_of_diagnosis_notices_and_retention_reach_the_customer(site: Site, start_daemon: Start) -> None:
    job_id = await site.train()
    await start_daemon()
    await site.reaches(job_id, "completed")
    events = dict(await site.events(job_id))
    assert events["diagnosed"] == {"scores": [1.0, 2.0], "new_after": [1]}
    assert events["notice"] == {"code": "micro_batch_halved", "message": "The micro-batch is 1 now."}
    told = events["evaluation"]
    assert (told["perplexity"], told["retention_perplexity"], told["turn_end"]) == (9.0, 3.0, True)


# -- rehearsal pools -------------------------------------------------------------------------------------------------


async def pool_object(site: Site, prefix: str) -> bytes:
    return await site.storage.get_bytes(s3_keys.pool_file(prefix, POOL_SHA256))


async def test_a_catalog_models_pool_is_sampled_first_and_lies_beside_it_by_hash(
    site: Site, start_daemon: Start
) -> None:
    base_model_id = await site.base_model()
    job_id = await site.train(base_model_id=base_model_id)
    sample_id = await site.sample(Base(base_model_id=base_model_id))
    await start_daemon()
    job = await site.reaches(job_id, "completed")
    sampled = await site.job(sample_id)
    assert sampled.finished_at is not None
    assert job.started_at is not None
    assert (sampled.state, sampled.finished_at <= job.started_at) == ("completed", True)
    assert await pool_object(site, s3_keys.base_model(base_model_id)) == POOL_CONTENT
    assert job.result is not None
    assert job.result["pool_files"] == ["train-00000.jsonl"]
    assert await site.pool.fetchval("select count(*) from ledger where job_id = $1", sample_id) == 0
    assert (
        await site.pool.fetchval("select count(*) from outbox where job_id = $1 and topic !~ '^internal'", sample_id)
        == 0
    )


async def test_the_pool_of_an_accounts_model_lies_below_that_model_and_serves_jobs_from_it_alone(
    site: Site, start_daemon: Start
) -> None:
    grown_id = await site.train()
    await start_daemon()
    grown = await site.reaches(grown_id, "completed")
    model_id, model = grown.output_model_id, await model_of(site, grown)
    sample_id = await site.sample(Base(model_id=model_id, account_id=grown.account_id))
    await site.reaches(sample_id, "completed")
    assert await pool_object(site, model["s3_prefix"]) == POOL_CONTENT
    job = await site.reaches(await site.contract(grown), "completed")
    assert job.result is not None
    assert job.result["pool_files"] == ["train-00000.jsonl"]
    assert isinstance(grown.base_model_id, UUID)
    with pytest.raises(ObjectMissingError):
        await pool_object(site, s3_keys.base_model(grown.base_model_id))
    other = await site.reaches(await site.train(base_model_id=grown.base_model_id), "completed")
    assert other.result is not None
    assert other.result["pool_files"] == []
