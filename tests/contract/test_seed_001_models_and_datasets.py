"""'Models & datasets', replayed."""

from typing import Any

import httpx
from fusion_core.db.pool import queries

from .shown import differences


async def test_base_models(customer: Any, base_model_id: str) -> None:
    await customer.pool.execute(
        "update base_models set family = 'falcon', name = 'falcon-h1-1.5b', version = 'bf16', params = 1550000000,"
        " precision = 'bf16' where id = $1",
        base_model_id,
    )
    shown = {
        "id": base_model_id,
        "family": "falcon",
        "name": "falcon-h1-1.5b",
        "version": "bf16",
        "params": 1550000000,
        "precision": "bf16",
    }
    answer = await customer.send("GET", "/api/base-models")
    assert answer.status_code == 200
    assert differences([shown], answer.json(), more=False) == []


async def test_models_newest_first_and_the_download_manifest(customer: Any, base_model_id: str) -> None:
    job_id = await customer.submit(base_model_id)
    await customer.complete(await customer.claim(job_id))
    model = {
        "id": "<id>",
        "name": "my-grown-model",
        "version": "v1",
        "params": 9000000,
        "base_model_id": base_model_id,
        "lineage": {"job_id": job_id},
        "status": "ready",
        "created_at": "<time>",
    }
    [answered] = models = (await customer.send("GET", "/api/models")).json()
    assert differences([model], models) == []
    manifest = {
        "model_id": answered["id"],
        "name": "my-grown-model",
        "version": "v1",
        "files": [{"rel": "config.json", "size": 5, "url": "<url>"}],
    }
    assert differences(manifest, (await customer.send("GET", f"/api/models/{answered['id']}/download")).json()) == []


async def test_a_name_again_is_the_next_version(customer: Any, base_model_id: str) -> None:
    for _ in range(2):
        await customer.complete(await customer.claim(await customer.submit(base_model_id)))
    models = (await customer.send("GET", "/api/models")).json()
    assert [model["version"] for model in models if model["name"] == "my-grown-model"] == ["v2", "v1"]


async def test_datasets_newest_first(customer: Any) -> None:
    row = await queries.insert_dataset(customer.pool, account_id=customer.account_id, name="wikitext-x2-chassis")
    await queries.dataset_ready(
        customer.pool, dataset_id=row["id"], shard_count=8, bytes=2400000000, rows=2, heldout_rows=1
    )
    shown = {
        "id": str(row["id"]),
        "name": "wikitext-x2-chassis",
        "version": "v1",
        "shard_count": 8,
        "bytes": 2400000000,
        "status": "ready",
        "created_at": "<time>",
    }
    assert differences([shown], (await customer.send("GET", "/api/datasets")).json()) == []


async def test_presigning_an_upload(customer: Any, storage: Any) -> None:
    body = {"filename": "train.jsonl", "content_type": "application/jsonl"}
    answer = await customer.send("POST", "/api/uploads/presign", json=body)
    assert answer.status_code == 200
    shown = {"upload_id": "<id>", "key": "<any>", "url": "<url>", "method": "PUT"}
    assert differences(shown, answer.json(), more=False) == []
    assert answer.json()["key"].startswith("tmp/")
    assert answer.json()["key"].endswith("/train.jsonl")
    async with httpx.AsyncClient() as plain:
        put = await plain.put(answer.json()["url"], content=b"{}", headers={"Content-Type": "application/jsonl"})
    assert put.status_code == 200
