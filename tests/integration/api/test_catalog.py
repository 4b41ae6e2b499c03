"""Datasets and models can be looked into, renamed, expired and deleted; a recommendation fits model and data."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fusion_api.recommend import recommend_lr, recommend_seq_len, recommend_steps
from fusion_core.db.pool import Pool, queries
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import FileEntry, Manifest
from tokenizers import Tokenizer, models, pre_tokenizers

ROWS = [{"text": f"row {number} of this dataset"} for number in range(40)]


async def dataset_with_shards(customer: Any, storage: Any, rows: list[Any] = ROWS) -> str:
    dataset_id = await customer.dataset()
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    key = f"jobs/{dataset_id}/shards/train"
    await storage.put_bytes(key, content)
    await queries.insert_shard(
        customer.pool,
        dataset_id=UUID(dataset_id),
        split="train",
        ordinal=0,
        s3_key=key,
        bytes=len(content),
        rows=len(rows),
        sha256="0" * 64,
    )
    return dataset_id


@pytest.fixture
async def base_with_tokenizer(customer: Any, storage: Any, base_model_id: str) -> str:
    tokenizer = Tokenizer(models.WordLevel({"row": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    content = tokenizer.to_str().encode()
    await storage.put_bytes(f"base-models/{base_model_id}/tokenizer.json", content)
    manifest = Manifest((FileEntry("tokenizer.json", len(content), "1" * 64),))
    await customer.pool.execute("update base_models set manifest = $1 where id = $2", manifest, UUID(base_model_id))
    return base_model_id


async def model_of(customer: Any, base: str) -> str:
    job_id = await customer.submit(base)
    await customer.complete(await customer.claim(job_id))
    return str((await customer.send("GET", f"/api/jobs/{job_id}")).json()["output_model_id"])


async def test_the_first_rows_can_be_seen(customer: Any, storage: Any) -> None:
    dataset_id = await dataset_with_shards(customer, storage)
    shown = (await customer.send("GET", f"/api/datasets/{dataset_id}/preview?rows=3")).json()
    assert (shown["rows"], shown["truncated"]) == (ROWS[:3], False)
    long = await dataset_with_shards(customer, storage, [{"text": "a" * 600_000}, {"text": "b" * 600_000}])
    cut = (await customer.send("GET", f"/api/datasets/{long}/preview?rows=3")).json()
    assert (len(cut["rows"]), cut["truncated"]) == (1, True)


async def test_no_connection_to_postgres_is_held_while_s3_is_read(
    customer: Any, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_id = await dataset_with_shards(customer, storage)
    api: Pool = customer.http._transport.app._app.state.services.pool
    real, held = Storage.open, []

    async def watched(self: Storage, key: str) -> AsyncIterator[bytes]:
        held.append(api.get_size() - api.get_idle_size())
        async for chunk in real(self, key):
            yield chunk

    monkeypatch.setattr(Storage, "open", watched)
    assert (await customer.send("GET", f"/api/datasets/{dataset_id}/preview")).status_code == 200
    assert set(held) == {0}


async def test_tokens_are_counted_with_the_base_models_own_tokenizer(
    customer: Any, storage: Any, base_with_tokenizer: str, base_model_id: str
) -> None:
    dataset_id = await dataset_with_shards(customer, storage)
    path = f"/api/datasets/{dataset_id}/tokens?base_model_id={base_with_tokenizer}"
    for _ in range(2):  # the second time from the database
        count = (await customer.send("GET", path)).json()
        assert (count["tokens"], count["exact"]) == (40 * (5 + 1), True)
    await storage.delete([f"base-models/{base_model_id}/tokenizer.json"])
    assert (await customer.send("GET", path)).json() == count


async def test_a_base_without_a_tokenizer_says_so(
    customer: Any, storage: Any, base_model_id: str, problem: Any
) -> None:
    dataset_id = await dataset_with_shards(customer, storage)
    path = f"/api/datasets/{dataset_id}/tokens?base_model_id={base_model_id}"
    problem(await customer.send("GET", path), "tokenizer_unreadable")


async def test_a_dataset_is_deleted_unless_a_job_reads_it(customer: Any, base_model_id: str, problem: Any) -> None:
    body = await customer.job_body(base_model_id)
    path = f"/api/datasets/{body['dataset_id']}"
    job = (await customer.send("POST", "/api/jobs", json=body)).json()
    problem(await customer.send("DELETE", path), "in_use")
    await customer.send("POST", f"/api/jobs/{job['id']}/cancel")
    assert (await customer.send("DELETE", path)).status_code == 204
    problem(await customer.send("DELETE", path), "not_found")
    problem(await customer.send("GET", path), "not_found")
    assert (await customer.send("GET", "/api/datasets")).json() == []
    problem(await customer.send("POST", "/api/jobs", json=body | {"idempotency_key": "new"}), "not_found")
    assert (await customer.send("POST", "/api/jobs", json=body)).status_code == 200, "the old key still answers"


async def test_a_model_and_the_jobs_that_grow_it_cannot_lose_each_other(
    customer: Any, base_model_id: str, problem: Any
) -> None:
    model_id = await model_of(customer, base_model_id)
    bodies = [await customer.job_body(model_id) for _ in range(8)]
    *jobs, deleted = await asyncio.gather(
        *(customer.send("POST", "/api/jobs", json=body) for body in bodies),
        customer.send("DELETE", f"/api/models/{model_id}"),
    )
    created = [job for job in jobs if job.status_code == 201]
    if deleted.status_code == 204:
        assert created == []
    else:
        problem(deleted, "in_use")
        assert created != []
    assert {job.status_code for job in jobs} <= {201, 404}


async def test_a_model_can_be_renamed_expire_and_be_deleted(customer: Any, base_model_id: str, problem: Any) -> None:
    first, second = await model_of(customer, base_model_id), await model_of(customer, base_model_id)
    path = f"/api/models/{second}"
    assert (await customer.send("GET", path)).json()["version"] == "v2"
    moment = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    changed = await customer.send("PATCH", path, json={"name": "better", "expires_at": moment.isoformat()})
    shown = changed.json()
    assert (shown["name"], shown["version"]) == ("better", "v1")
    assert datetime.fromisoformat(shown["expires_at"]) == moment
    back = (await customer.send("PATCH", path, json={"name": "my-grown-model", "expires_at": None})).json()
    assert (back["version"], back.get("expires_at")) == ("v2", None)
    for past in ("2020-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59"):
        (error,) = problem(await customer.send("PATCH", path, json={"expires_at": past}), "validation_failed")["errors"]
        assert "DELETE takes" in error["detail"]
    late = {"expires_at": "9999-12-31T23:59:59-23:59"}
    problem(await customer.send("PATCH", path, json=late), "validation_failed")
    assert (await customer.send("DELETE", f"/api/models/{first}")).status_code == 204
    problem(await customer.send("GET", f"/api/models/{first}/download"), "not_found")
    assert [model["id"] for model in (await customer.send("GET", "/api/models")).json()] == [second]


async def test_an_expired_model_is_deleted_once_no_job_uses_it(customer: Any, base_model_id: str) -> None:
    model_id = await model_of(customer, base_model_id)
    job = (await customer.send("POST", "/api/jobs", json=await customer.job_body(model_id))).json()
    await customer.pool.execute(
        "update models set expires_at = now() - interval '1 hour' where id = $1", UUID(model_id)
    )
    assert [row async for row in queries.delete_expired_models(customer.pool, limit=9)] == []
    await customer.send("POST", f"/api/jobs/{job['id']}/cancel")
    assert [str(row["id"]) async for row in queries.delete_expired_models(customer.pool, limit=9)] == [model_id]


async def test_lineage_leads_from_the_model_to_the_catalog(customer: Any, base_model_id: str) -> None:
    parent = await model_of(customer, base_model_id)
    child = await model_of(customer, parent)
    await customer.send("DELETE", f"/api/models/{parent}")
    line = (await customer.send("GET", f"/api/models/{child}/lineage")).json()
    assert [(step["model_id"], step["parent_model_id"], step["status"]) for step in line] == [
        (child, parent, "ready"),
        (parent, None, "deleted"),
    ]
    assert line[1]["base_model_id"] == base_model_id
    assert line[0]["dataset"] == "data v2"


async def test_a_catalog_model_shows_what_limits_a_job(customer: Any, base_model_id: str) -> None:
    shown = (await customer.send("GET", f"/api/base-models/{base_model_id}")).json()
    assert (shown["layers"], shown["max_seq_len"], shown["rehearsal"]) == (4, 1024, False)


async def test_a_recommendation_can_be_submitted_and_costs_what_it_says(
    customer: Any, storage: Any, base_with_tokenizer: str
) -> None:
    dataset_id = await dataset_with_shards(customer, storage)
    request = {"base_model_id": base_with_tokenizer, "dataset_id": dataset_id}
    shown = (await customer.send("POST", "/api/training/recommend", json=request)).json()
    assert shown["dataset_tokens"] == 240
    assert shown["hyperparams"] == {
        "turns": 2, "lr": 1e-3, "seq_len": 128, "cycles": 6, "steps_per_cycle": 500,
    }  # fmt: skip
    assert {reason["setting"] for reason in shown["reasons"]} == set(shown["hyperparams"])
    assert all(len(reason["reason"]) > 10 for reason in shown["reasons"])
    assert len(shown["warnings"]) == 1
    assert "every row is read" in shown["warnings"][0]
    body = {"type": "train", "idempotency_key": "recommended", **request, "hyperparams": shown["hyperparams"]}
    job = (await customer.send("POST", "/api/jobs", json=body)).json()
    detail = (await customer.send("GET", f"/api/jobs/{job['id']}")).json()
    assert detail["estimate"] == shown["estimate"]
    assert (detail["params_before"], detail["params_after"]) == (shown["params_before"], shown["params_after"])


def test_recommended_figures_follow_size_and_data() -> None:
    assert recommend_lr(1_550_000_000) == 1e-4
    assert recommend_lr(6_200_000_000) == 5e-5
    assert recommend_lr(10**12) == 1e-5
    assert [recommend_seq_len(mean, 2048) for mean in (10, 100, 400, 5000)] == [128, 256, 1024, 2048]
    assert recommend_seq_len(100, 64) == 64
    assert [recommend_steps(tokens, 256) for tokens in (0, 1_000_000, 10**9)] == [500, 1302, 2000]
