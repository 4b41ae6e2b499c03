"""Connections to Postgres that fall silent cost a heartbeat, not the lease, where new ones pass."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import msgspec
from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt, Claimer
from fusion_core.db.pool import connect_pool
from fusion_worker.heartbeat import Heartbeat
from fusion_worker.metrics import Metrics
from fusion_worker.settings import WorkerSettings

from tests.faults.proxy import HOST, PASS, Fault, Kind, Proxy

from .conftest import POOL, Site, until


async def test_a_lease_outlives_a_pool_of_silent_connections(
    site: Site, database_url: str, worker_settings: WorkerSettings, tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(worker_settings, heartbeat_s=0.3, lease_ttl_s=20)
    parts = urlsplit(database_url)
    with Proxy() as proxy:
        port = proxy.link("postgres", parts.port or 5432)
        through = urlunsplit(parts._replace(netloc=f"{parts.netloc.rsplit(':', 1)[0]}:{port}"))
        assert HOST in through
        pool = await connect_pool(through, application_name="silent", min_size=3, max_size=4)
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
