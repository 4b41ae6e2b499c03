"""Two real orchestrator processes: they serve, share the work, outlive restarts of the stores, and stop when told."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fusion_local.stack import Stack, free_port
from fusion_orchestrator.doorbell import Doorbell
from fusion_orchestrator.service import running
from fusion_orchestrator.settings import OrchestratorSettings

QUICK = {"FUSION_SWEEP_S": "0.2", "FUSION_RING_AGAIN_S": "0.5", "FUSION_LEASE_TTL_S": "2", "FUSION_SWEEP_GAP_S": "5"}


class Replica:
    """One process."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.port = free_port()
        self.log = log
        self._environment = environment | {"FUSION_PORT": str(self.port), "PATH": os.environ["PATH"]}

    async def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fusion_orchestrator", env=self._environment, stderr=log, stdout=log
            )

    async def get(self, path: str) -> tuple[int, str]:
        async with httpx.AsyncClient(timeout=10) as client:
            try:
                answer = await client.get(f"http://127.0.0.1:{self.port}{path}")
            except httpx.TransportError:
                return 0, ""
        return answer.status_code, answer.text

    async def is_ready(self) -> bool:
        assert self.process.returncode is None, self.log.read_text()
        return (await self.get("/ready"))[0] == 200 and "fusion_doorbell_listening 1.0" in (await self.get("/metrics"))[
            1
        ]

    async def figure(self, name: str) -> float:
        _, text = await self.get("/metrics")
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            return await self.process.wait()


@pytest.fixture
async def replicas(
    service_environment: dict[str, str], tmp_path: Path, eventually: Any, _template: str
) -> AsyncIterator[list[Replica]]:
    pair = [Replica(service_environment | QUICK, tmp_path / f"replica-{number}.log") for number in (1, 2)]
    for replica in pair:
        await replica.start()
    for replica in pair:
        await eventually(replica.is_ready, within_s=30)
    yield pair
    for replica in pair:
        await replica.stop()


async def test_two_processes_ring_and_reclaim_once_and_stop_cleanly(
    replicas: list[Replica], world: Any, eventually: Any
) -> None:
    attempts = [await world.claim(await world.queue_job()) for _ in range(10)]
    for attempt in attempts:
        await world.expire(attempt)

    async def all_queued() -> bool:
        return await world.count("select count(*) from jobs where state = 'queued'") == 10

    async def all_rung() -> bool:
        return await world.count("select count(*) from jobs where ring_count > 0") == 10

    await eventually(all_queued)
    await eventually(all_rung)
    assert await world.count("select count(*) from job_events where type = 'interrupted'") == 10
    assert await world.count("select max(retries) from jobs") == 1
    await asyncio.sleep(1.2)
    rings = await world.rings()
    assert sum([await replica.figure("fusion_reclaims_total") for replica in replicas]) == 10
    assert len(set(rings)) == len(rings)
    sent = sum([await replica.figure("fusion_rings_total") for replica in replicas])
    assert (
        abs(sent - await world.count("select sum(ring_count) from jobs")) <= 10
    )  # a pass may be between the two reads
    assert await replicas[0].figure("fusion_jobs{") == 10
    assert await replicas[0].figure("fusion_oldest_queued_age_seconds") > 0
    assert (await replicas[0].get("/health"))[0] == 200
    assert [await replica.stop() for replica in replicas] == [0, 0]
    for replica in replicas:
        assert '"event": "stopped"' in replica.log.read_text()
        assert "Traceback" not in replica.log.read_text()


async def test_the_stores_may_restart(replicas: list[Replica], world: Any, eventually: Any, stack: Stack) -> None:
    await world.queue_job()
    await eventually(world.rings)

    await asyncio.to_thread(stack.processes.stop, "valkey")
    await asyncio.to_thread(stack.start_valkey)
    await world.redis.flushall()
    await eventually(world.rings)  # rung anew

    await asyncio.to_thread(stack.processes.stop, "postgres")
    assert (await replicas[0].get("/ready"))[0] == 503
    assert (await replicas[0].get("/health"))[0] == 200

    async def database_is_missed() -> bool:  # once the figures that were read before are old
        return "fusion_database_up 0.0" in (await replicas[0].get("/metrics"))[1]

    await eventually(database_is_missed)
    await asyncio.to_thread(stack.start_postgres)
    for replica in replicas:
        await eventually(replica.is_ready, within_s=30)
    await world.redis.flushall()
    job = await world.queue_job()

    async def rung_for_new() -> bool:
        return any(ring.startswith(str(job.id)) for ring in await world.rings())

    await eventually(rung_for_new)
    assert [await replica.stop() for replica in replicas] == [0, 0]


async def test_it_starts_before_its_stores_and_stops_without_them(tmp_path: Path, eventually: Any) -> None:
    nowhere = {
        "FUSION_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "FUSION_REDIS_URL": "redis://127.0.0.1:1/0",
        "FUSION_S3_ENDPOINT": "http://127.0.0.1:1",
        "FUSION_S3_ACCESS_KEY": "x",
        "FUSION_S3_SECRET_KEY": "very-secret",
    }
    replica = Replica(nowhere | QUICK, tmp_path / "log")
    await replica.start()

    async def answers() -> bool:
        return (await replica.get("/health"))[0] == 200

    await eventually(answers, within_s=30)
    assert (await replica.get("/ready"))[0] == 503
    assert await replica.stop() == 0
    assert "very-secret" not in replica.log.read_text()


async def test_a_loop_that_ends_makes_the_replica_unhealthy(
    settings: OrchestratorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(_doorbell: Doorbell) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(Doorbell, "listen", breaks)
    async with running(settings) as service:
        await asyncio.sleep(0.05)
        assert service.dead_loops() == ["listen"]


async def test_a_loop_outlives_a_bug_in_a_pass(
    settings: OrchestratorSettings, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    async def breaks(_doorbell: Doorbell) -> int:
        raise LookupError("a bug")

    monkeypatch.setattr(Doorbell, "ring_due", breaks)
    async with running(msgspec.structs.replace(settings, sweep_s=0.05)) as service:

        async def failed_twice() -> bool:
            return b'fusion_loop_errors_total{loop="ring"} 2.0' in service.metrics.text()

        await eventually(failed_twice)
        assert service.dead_loops() == []


async def test_bad_settings_are_all_named(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fusion_orchestrator", env={"FUSION_SWEEP_S": "soon"}, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        _, err = await process.communicate()
    assert process.returncode == 1
    for name in ("FUSION_DATABASE_URL", "FUSION_REDIS_URL", "FUSION_S3_ENDPOINT", "FUSION_SWEEP_S"):
        assert name in err.decode()
