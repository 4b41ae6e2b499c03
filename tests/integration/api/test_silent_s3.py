"""An S3 that takes connections and never answers: uploads wait for it, and nothing else of their account does."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import httpx
import pytest
from fusion_core.storage import Storage

from tests.faults.proxy import PASS, Fault, Kind, Proxy

from .api_process import Server, serving
from .conftest import Customer
from .test_uploads import MIB, put

CONNECTIONS = 2  # of the api to Postgres
PATIENCE_S = 20
SILENT = Fault(Kind.HALF_OPEN)
BODY = {"filename": "rows.jsonl", "size": 6 * MIB, "part_size": 5 * MIB}


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


@pytest.fixture
def server(storage: Storage, service_environment: dict[str, str], proxy: Proxy, tmp_path: Path) -> Iterator[Server]:
    parts = urlsplit(service_environment["FUSION_S3_ENDPOINT"])
    assert parts.port is not None
    own = {
        "FUSION_S3_ENDPOINT": urlunsplit(parts._replace(netloc=f"{parts.hostname}:{proxy.link('s3', parts.port)}")),
        "FUSION_S3_PUBLIC_ENDPOINT": service_environment["FUSION_S3_ENDPOINT"],
        "FUSION_MAX_CONNECTIONS": str(CONNECTIONS),
        "FUSION_ANSWER_DEADLINE_S": "4",
        "FUSION_LOG_FORMAT": "json",
    }
    with serving(service_environment | own, tmp_path / "api.log") as server:
        yield server


@pytest.fixture
async def http(server: Server, customer: Customer) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {customer.secret}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=PATIENCE_S) as http:
        yield http


async def check_others_are_served(http: httpx.AsyncClient, waiting: list[asyncio.Task[httpx.Response]]) -> None:
    """While these wait for S3: reads, and what takes the lock of the same account."""
    assert (await http.get("/api/account")).status_code == 200
    presigned = await http.post("/api/uploads/presign", json={"filename": "a.jsonl"})
    assert presigned.status_code == 200
    assert not any(task.done() for task in waiting)
    for answer in await asyncio.gather(*waiting):
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready"), answer.text


async def test_uploads_that_s3_does_not_begin_hold_up_nobody_and_begin_when_asked_again(
    http: httpx.AsyncClient, proxy: Proxy, customer: Customer
) -> None:
    def begin(key: int) -> asyncio.Task[httpx.Response]:
        headers = {"Idempotency-Key": f"begin-{key}"}
        return asyncio.create_task(http.post("/api/uploads/multipart", json=BODY, headers=headers))

    proxy.set("s3", SILENT)
    waiting = [begin(key) for key in range(2 * CONNECTIONS)]
    await until_uploads(customer, len(waiting))
    await check_others_are_served(http, waiting)
    soon = await customer.pool.fetchval("select count(*) from uploads where expires_at < now() + interval '1 hour'")
    assert soon == len(waiting), "what nobody asks for again does not count for long"
    proxy.set("s3", PASS)
    again = await asyncio.gather(begin(0), begin(0), begin(0))
    assert {answer.status_code for answer in again} == {201}
    assert len({answer.json()["upload_id"] for answer in again}) == 1
    assert again[0].json()["missing"] == [1, 2]
    row = await customer.pool.fetchrow("select * from uploads where id = $1", UUID(again[0].json()["upload_id"]))
    assert row is not None
    assert row["multipart_id"] is not None
    assert (row["expires_at"] - row["created_at"]).days >= 7


async def until_uploads(customer: Customer, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await customer.pool.fetchval("select count(*) from uploads") < count:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def test_an_upload_that_s3_does_not_complete_holds_up_nobody_and_completes_when_asked_again(
    http: httpx.AsyncClient, proxy: Proxy, customer: Customer
) -> None:
    upload = (await http.post("/api/uploads/multipart", json=BODY)).json()
    path = f"/api/uploads/{upload['upload_id']}"
    for part in (await http.post(f"{path}/parts", json={})).json():
        assert (await put(part["url"], b"x" * part["size"])).status_code == 200
    proxy.set("s3", SILENT)
    waiting = [asyncio.create_task(http.post(f"{path}/complete")) for _ in range(2 * CONNECTIONS)]
    async with asyncio.timeout(PATIENCE_S):
        while await completing(customer) is None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    await check_others_are_served(http, waiting)
    proxy.set("s3", PASS)
    assert (await http.post(f"{path}/complete")).status_code == 503, "S3 may still be at the one that was cut off"
    await customer.pool.execute("update uploads set completing_until = now() - interval '1 second'")
    answers = await asyncio.gather(*(http.post(f"{path}/complete") for _ in range(3)))
    assert [answer.json()["status"] for answer in answers] == ["complete"] * 3
    assert await completing(customer) is None


async def completing(customer: Customer) -> Any:
    return await customer.pool.fetchval("select completing_until from uploads where multipart_id is not null")
