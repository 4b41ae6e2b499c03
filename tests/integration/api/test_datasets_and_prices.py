"""Uploads, datasets and estimates."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fusion_api.uploads import sanitised

NewCustomer = Callable[..., Awaitable[Any]]
Problem = Callable[[httpx.Response, str], Any]


async def test_upload_then_dataset(customer: Any, problem: Problem) -> None:
    asked = {"filename": "../train.jsonl", "content_type": "application/jsonl"}
    presigned = (await customer.send("POST", "/api/uploads/presign", json=asked)).json()
    assert list(presigned) == ["upload_id", "key", "url", "method"]
    assert presigned["key"].startswith("tmp/")
    assert presigned["key"].endswith("/train.jsonl")
    wanted = {"upload_ids": [presigned["upload_id"]]}
    problem(await customer.send("POST", "/api/datasets", json=wanted), "upload_missing")
    async with httpx.AsyncClient() as web:
        wrong = await web.put(presigned["url"], content=b"x", headers={"Content-Type": "text/html"})
        assert wrong.status_code == 403, "the content type is signed"
        headers = {"Content-Type": "application/jsonl"}
        assert (await web.put(presigned["url"], content=b'{"text": "a"}\n', headers=headers)).status_code == 200
    created = await customer.send("POST", "/api/datasets", json=wanted)
    assert created.status_code == 201
    dataset = created.json()
    assert (dataset["name"], dataset["version"], dataset["status"]) == ("train", "v1", "validating")
    assert (await customer.send("GET", f"/api/datasets/{dataset['id']}")).json() == dataset
    problem(await customer.send("POST", "/api/datasets", json=wanted), "upload_consumed")
    assert (await customer.send("GET", "/api/jobs")).json() == [], "ingest is internal"


async def test_uploads_of_others_and_unknown_ones_are_named(
    customer: Any, new_customer: NewCustomer, problem: Problem
) -> None:
    stranger = await new_customer()
    asked = {"filename": "a.txt", "content_type": "text/plain"}
    presigned = (await customer.send("POST", "/api/uploads/presign", json=asked)).json()
    wanted = {"upload_ids": [presigned["upload_id"], str(uuid4())]}
    errors = problem(await stranger.send("POST", "/api/datasets", json=wanted), "not_found")["errors"]
    assert [error["pointer"] for error in errors] == ["/upload_ids/0", "/upload_ids/1"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a b.txt", "a_b.txt"), ("..", "file"), ("C:\\x\\y.jsonl", "y.jsonl"), ("/etc/passwd", "passwd"), ("é", "_")],
)
def test_file_names_are_sanitised(given: str, kept: str) -> None:
    assert sanitised(given) == kept


async def test_the_estimate_of_the_manual(customer: Any, problem: Problem) -> None:
    asked = {"params_before": 70_000_000_000, "params_after": 90_000_000_000, "train_steps": 5000, "seq_len": 256}
    estimate = (await customer.send("POST", "/api/pricing/estimate", json=asked)).json()
    assert estimate == {
        "total_usd": 557.6,
        "unit": "1M-tokens",
        "qty": 1.28,
        "line_items": [
            {"label": "training", "qty": 1280000, "unit": "1M-tokens", "rate": 45.0, "amount": 57.6},
            {"label": "growth", "qty": 20000000000, "unit": "params", "rate": 25.0, "amount": 500.0},
        ],
    }
    asked = {"type": "contract", "params_before": 5_000_000_000}
    assert (await customer.send("POST", "/api/pricing/estimate", json=asked)).json()["total_usd"] == 20.0
    asked = {"params_before": 1_500_000_000, "params_after": 2_360_000_000, "turns": 2}
    example = (await customer.send("POST", "/api/pricing/estimate", json=asked)).json()
    assert example["total_usd"] == pytest.approx(21.5 + 9.216)
    asked = {"params_before": 2, "params_after": 1}
    problem(await customer.send("POST", "/api/pricing/estimate", json=asked), "validation_failed")


async def test_every_upload_that_never_came_is_named(customer: Any, problem: Problem) -> None:
    asked = {"filename": "a.txt", "content_type": "text/plain"}
    presigned = [(await customer.send("POST", "/api/uploads/presign", json=asked)).json() for _ in range(3)]
    async with httpx.AsyncClient() as web:
        await web.put(presigned[1]["url"], content=b"a", headers={"Content-Type": "text/plain"})
    wanted = {"upload_ids": [upload["upload_id"] for upload in presigned]}
    errors = problem(await customer.send("POST", "/api/datasets", json=wanted), "upload_missing")["errors"]
    assert [error["pointer"] for error in errors] == ["/upload_ids/0", "/upload_ids/2"]
    wanted["upload_ids"].append(presigned[0]["upload_id"])
    errors = problem(await customer.send("POST", "/api/datasets", json=wanted), "validation_failed")["errors"]
    assert [error["pointer"] for error in errors] == ["/upload_ids/3"]
    assert (await customer.send("GET", "/api/datasets")).json() == []


async def test_a_name_that_exists_gets_its_next_version(customer: Any) -> None:
    versions = []
    for _ in range(2):
        asked = {"filename": "a.txt", "content_type": "text/plain"}
        presigned = (await customer.send("POST", "/api/uploads/presign", json=asked)).json()
        async with httpx.AsyncClient() as web:
            await web.put(presigned["url"], content=b"a", headers={"Content-Type": "text/plain"})
        wanted = {"name": "texts", "upload_ids": [presigned["upload_id"]]}
        versions.append((await customer.send("POST", "/api/datasets", json=wanted)).json()["version"])
    assert versions == ["v1", "v2"]
    newest, oldest = (await customer.send("GET", "/api/datasets")).json()
    assert (newest["version"], oldest["version"]) == ("v2", "v1")
    shown = {"id", "name", "version", "shard_count", "bytes", "status", "created_at"}
    assert shown <= set(newest), "the manual's fields"


async def test_base_models_as_in_the_manual(customer: Any, base_model_id: str) -> None:
    expected = {"id": base_model_id, "family": "llama", "name": "tiny", "version": "fp32"}
    expected |= {"params": 1, "precision": "fp32"}
    assert (await customer.send("GET", "/api/base-models")).json() == [expected]


@pytest.mark.parametrize(
    ("asked", "total"),
    [
        ({"turns": 1}, 24.858),
        ({"turns": 2}, 29.466),
        ({"tokens": 1_536_000}, 24.858),
        ({"turns": 1, "cycles": 3, "steps_per_cycle": 2000}, 24.858),
        ({"turns": 1, "train_steps": 6000, "cycles": 9}, 24.858),
    ],
)
async def test_the_manuals_example_of_1_55_to_2_36_billion(customer: Any, asked: dict[str, int], total: float) -> None:
    """About 25 dollars with one turn, about 30 with two."""
    sizes = {"params_before": 1_550_000_000, "params_after": 2_360_000_000}
    estimate = (await customer.send("POST", "/api/pricing/estimate", json=sizes | asked)).json()
    assert estimate["total_usd"] == total


async def test_the_minimum_is_a_line_of_its_own(customer: Any) -> None:
    asked = {"params_before": 1, "params_after": 1, "tokens": 1000}
    estimate = (await customer.send("POST", "/api/pricing/estimate", json=asked)).json()
    assert (estimate["total_usd"], estimate["line_items"][-1]["label"]) == (2.0, "minimum")
