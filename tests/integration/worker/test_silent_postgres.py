"""Connections to Postgres that fall silent cost a heartbeat, not the lease, where new ones pass."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import msgspec
import pytest
from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt, Claimer
from fusion_core.db.pool import connect_pool
from fusion_worker import daemon as daemon_module
from fusion_worker.heartbeat import Heartbeat
from fusion_worker.metrics import Metrics
from fusion_worker.settings import WorkerSettings

from tests.faults.proxy import PASS, Fault, Kind, Proxy

from .conftest import POOL, Site, Start, until


def through_proxy(proxy: Proxy, database_url: str) -> str:
    """The same database, over the link `postgres`."""
    parts = urlsplit(database_url)
    assert parts.port is not None
    host = parts.netloc.rsplit(":", 1)[0]
    return urlunsplit(parts._replace(netloc=f"{host}:{proxy.link('postgres', parts.port)}"))


async def test_a_lease_outlives_a_pool_of_silent_connections(
    site: Site, database_url: str, worker_settings: WorkerSettings, tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(worker_settings, heartbeat_s=0.3, lease_ttl_s=20)
    with Proxy() as proxy:
        pool = await connect_pool(through_proxy(proxy, database_url), application_name="silent", min_size=3, max_size=4)
        await site.train()
        claimed = await attempts.claim_next(site.pool, Claimer(worker_id=UUID(int=7), pool=POOL), uuid4(), 20)
        assert claimed is not None
        assert claimed.attempt_id is not None
        attempt = Attempt(claimed.id, claimed.lease_epoch, claimed.attempt_id)
        heartbeat = asyncio.create_task(Heartbeat(pool, settings, attempt, tmp_path, Metrics()).run())
        try:
            proxy.set("postgres", Fault(Kind.HALF_OPEN))
            await asyncio.sleep(0.5)  # a renewal waits on a silent connection now
            proxy.set("postgres", PASS)
            before = await site.pool.fetchval("select lease_expires_at from jobs where id = $1", attempt.job_id)

            async def renewed() -> bool:
                expires = await site.pool.fetchval("select lease_expires_at from jobs where id = $1", attempt.job_id)
                return bool(expires > before)

            await until(renewed, "the lease is renewed over a new connection")
        finally:
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)
            pool.terminate()


async def test_a_worker_drains_although_its_connections_fell_silent(
    site: Site, database_url: str, start_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "REPORT_PATIENCE_S", 0.3)
    with Proxy() as proxy:
        daemon = await start_daemon(database_url=through_proxy(proxy, database_url))

        async def registered() -> bool:
            return bool(await site.pool.fetchval("select count(*) > 0 from workers where state = 'idle'"))

        await until(registered, "the worker is registered")
        proxy.set("postgres", Fault(Kind.HALF_OPEN))
        await asyncio.sleep(0.5)
        daemon.drain()
        (running,) = [task for task in asyncio.all_tasks() if "Daemon.run" in repr(task.get_coro())]
        async with asyncio.timeout(20):  # without patience of their own, two reports would wait for half a minute each
            await running


async def test_no_checkpoint_is_committed_before_the_events_that_precede_it(
    site: Site, start_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_events, failures = attempts.append_events, iter(range(5))

    async def away(*arguments: Any, **named: Any) -> int:
        for _ in failures:
            raise ConnectionResetError
        return await append_events(*arguments, **named)

    monkeypatch.setattr(attempts, "append_events", away)
    job_id = await site.train()
    await start_daemon()
    await site.reaches(job_id, "completed")
    kinds = [(kind, data.get("step")) for kind, data in await site.events(job_id)]
    assert kinds.index(("checkpoint", 2)) > kinds.index(("metrics", 2))
