"""The API as a process: bad settings, clients that go away, a restart of Postgres, and SIGTERM."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from fusion_client import Fusion
from fusion_core.db.pool import queries
from fusion_core.storage import Storage
from fusion_local.stack import Stack

from .api_process import Server, serving

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def server(storage: Storage, service_environment: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    with serving(service_environment, tmp_path / "api.log") as server:
        yield server


async def test_the_client_uploads_a_file_in_parts(
    server: Server, customer: Any, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion_client.client.ONE_PUT_BYTES", 2**20)
    path = tmp_path / "rows.txt"
    path.write_bytes(random.randbytes(70 * 2**20))  # two parts
    with Fusion(server.url, customer.secret) as client:
        upload_id = await asyncio.to_thread(client.upload, path)
    stored = await customer.pool.fetchval("select s3_key from uploads where id = $1", UUID(upload_id))
    head = await storage.head(stored)
    assert head is not None
    assert head.size == path.stat().st_size


def test_bad_settings_are_all_named_and_end_the_process(service_environment: dict[str, str]) -> None:
    bad = service_environment | {"FUSION_PORT": "eighty", "FUSION_LOG_FORMAT": "yaml", "FUSION_S3_SECRET_KEY": ""}
    command = [sys.executable, "-m", "fusion_api"]
    done = subprocess.run(command, env=os.environ | bad, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    named = ("FUSION_PORT", "FUSION_LOG_FORMAT", "FUSION_S3_SECRET_KEY")
    assert all(name in done.stderr for name in named), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
async def test_streams_end_with_their_client_or_with_the_process(
    server: Server, customer: Any, base_model_id: str, ending: signal.Signals
) -> None:
    path = f"{server.url}/api/jobs/{await customer.submit(base_model_id)}/events"
    headers = STREAM | {"Authorization": f"Bearer {customer.secret}"}
    async with httpx.AsyncClient(timeout=20) as web:
        for _ in range(3):
            async with web.stream("GET", path, headers=headers) as stream:
                assert await anext(stream.aiter_lines()) == ": connected"
        async with web.stream("GET", path, headers=headers) as stream:
            await anext(stream.aiter_lines())
            server.process.send_signal(ending)
            server.process.wait(15)
    lines = server.lines()  # JSON throughout: no traceback
    assert [line for line in lines if line["level"] in ("error", "critical")] == []
    streams = [line for line in lines if line["event"] == "request" and line["path"].endswith("/events")]
    assert [line["status"] for line in streams] == [200] * 4


async def test_a_restart_of_postgres_ends_streams_and_nothing_else(
    server: Server, customer: Any, base_model_id: str, stack: Stack
) -> None:
    job_id = await customer.submit(base_model_id)
    headers = {"Authorization": f"Bearer {customer.secret}"}
    async with httpx.AsyncClient(timeout=30, base_url=server.url, headers=headers) as web:
        async with web.stream("GET", f"/api/jobs/{job_id}/events", headers=STREAM) as stream:
            arriving = stream.aiter_lines()
            assert await anext(arriving) == ": connected"
            stack.processes.stop("postgres")
            try:
                away = await web.get(f"/api/jobs/{job_id}")
                assert [line async for line in arriving], "the stream ends by itself"
            finally:
                stack.start_postgres()
        assert (away.status_code, away.json()["code"]) == (503, "not_ready")
        server.wait_ready()
        async with web.stream("GET", f"/api/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": "1"}) as stream:
            cancelled = await web.post(f"/api/jobs/{job_id}/cancel")
            assert cancelled.json()["status"] == "cancelled"
            assert "event: cancelled" in [line async for line in stream.aiter_lines()]
    assert [line for line in server.lines() if line["event"] == "request_failed"] == []


async def test_connections_that_postgres_ends_at_any_moment_are_never_a_fault_of_ours(
    server: Server, customer: Any, base_model_id: str
) -> None:
    """Between two messages of one statement too, where asyncpg raises InternalClientError."""
    job_id = await customer.submit(base_model_id)
    headers = {"Authorization": f"Bearer {customer.secret}"}
    statuses: set[int] = set()
    async with httpx.AsyncClient(timeout=30, base_url=server.url, headers=headers) as web:

        async def follow() -> None:
            async with web.stream("GET", f"/api/jobs/{job_id}/events", headers=STREAM) as stream:
                statuses.add(stream.status_code)
                async for _ in stream.aiter_lines():
                    pass

        async def look() -> None:
            statuses.add((await web.get(f"/api/jobs/{job_id}")).status_code)

        for _ in range(60):
            requests = [asyncio.create_task(one()) for one in (follow, follow, look, look, look)]
            await asyncio.sleep(random.uniform(0, 0.04))
            await queries.append_event(customer.pool, job_id=job_id, type="notice", data={})
            while not all(request.done() for request in requests):
                await customer.pool.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name = 'fusion-api' and datname = current_database()"
                )
                await asyncio.sleep(random.uniform(0, 0.01))
                await queries.append_event(customer.pool, job_id=job_id, type="notice", data={})
            await asyncio.gather(*requests)  # a stream that was cut off raises here
    assert statuses == {200, 503}
