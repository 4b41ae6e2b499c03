"""A drill: the line to Postgres is cut, and what the runbook of missed renewals says is what happens."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

from fusion_worker.settings import WorkerSettings

from tests.alert_rules import threshold
from tests.faults.proxy import Fault, Kind, Proxy

from .conftest import Site, Start, until


async def test_a_worker_cannot_renew_and_its_job_goes_on(
    site: Site, start_daemon: Start, worker_settings: WorkerSettings
) -> None:
    target = urlsplit(worker_settings.database_url)
    assert target.port is not None
    with Proxy() as proxy:
        port = await asyncio.to_thread(proxy.link, "postgres", target.port)
        through = target._replace(netloc=target.netloc.replace(f":{target.port}", f":{port}")).geturl()
        daemon = await start_daemon(database_url=through, heartbeat_s=0.2)
        job_id = await site.train("sleep")
        await site.has_event(job_id, "checkpoint")
        await asyncio.to_thread(proxy.set, "postgres", Fault(Kind.CUT))
        most = threshold("FusionRenewalsMissed", "fusion_worker_lease_renewals_total")

        def renewals(outcome: str) -> float:
            labels = {"outcome": outcome}
            return daemon.metrics.registry.get_sample_value("fusion_worker_lease_renewals_total", labels) or 0.0

        async def missed() -> bool:
            return renewals("missed") > most

        await until(missed, "renewals missed")
        assert daemon.metrics.registry.get_sample_value("fusion_worker_busy") == 1, "the trainer trains on"
        before: Any = renewals("renewed")
        await asyncio.to_thread(proxy.heal)

        async def renewed() -> bool:
            return renewals("renewed") > before

        await until(renewed, "renewed again")
        assert renewals("lost") == 0
