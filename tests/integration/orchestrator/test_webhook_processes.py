"""Orchestrators as processes of their own: killed at any point, and two side by side."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from fusion_local.stack import free_port

from .webhook_receiver import Receiver
from .webhook_rows import KEY, deliveries, states


class Process:
    """An orchestrator as a process of its own, which can be killed."""

    def __init__(self, environment: dict[str, str], log: Path, **extra: str) -> None:
        self.log = log
        self._environment = environment | extra | {"FUSION_PORT": str(free_port()), "PATH": os.environ["PATH"]}

    async def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fusion_orchestrator", env=self._environment, stderr=log, stdout=log
            )

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()


@pytest.fixture
def environment(service_environment: dict[str, str]) -> dict[str, str]:
    return service_environment | {
        "FUSION_WEBHOOK_KEY": KEY,
        "FUSION_WEBHOOK_ALLOW_HTTP": "true",
        "FUSION_WEBHOOK_ALLOW_PRIVATE": "127.0.0.1",
        "FUSION_SWEEP_S": "0.2",
        "FUSION_RING_AGAIN_S": "0.5",
    }


@pytest.mark.parametrize(
    ("failpoint", "attempts", "sent"),
    [("webhook_fanned_out", 0, 0), ("webhook_claimed", 1, 0), ("webhook_sent", 1, 1)],
)
async def test_a_process_killed_at_any_point_loses_nothing(
    environment: dict[str, str],
    world: Any,
    receiver: Receiver,
    eventually: Any,
    tmp_path: Path,
    failpoint: str,
    attempts: int,
    sent: int,
) -> None:
    """Between sending and recording, too: it is sent again then, under the same id and with the same bytes."""
    await world.webhook(receiver.url)
    await world.finish(await world.queue_job())
    killed = Process(environment, tmp_path / "killed.log", FUSION_FAILPOINT=failpoint)
    await killed.start()
    assert await killed.ended() == -signal.SIGKILL, killed.log.read_text()
    assert len(receiver.received) == sent
    (row,) = await deliveries(world)
    assert (row["state"], row["attempts"]) == ("pending", attempts)

    survivor = Process(environment, tmp_path / "survivor.log")
    await survivor.start()
    try:
        if attempts:
            await asyncio.sleep(1.5)
            assert len(receiver.received) == sent, "the lease of the dead has not run out"
            await world.pool.execute("update webhook_deliveries set lease_expires_at = now()")

        async def delivered() -> bool:
            return await states(world) == ["delivered"]

        await eventually(delivered, within_s=20)
    finally:
        assert await survivor.stop() == 0
    assert len(receiver.received) == sent + 1
    assert len({(got.id, got.body) for got in receiver.received}) == 1
    assert KEY not in survivor.log.read_text()
    assert receiver.url not in survivor.log.read_text()


async def test_two_replicas_send_each_delivery_once(
    environment: dict[str, str], world: Any, receiver: Receiver, eventually: Any, tmp_path: Path
) -> None:
    for _ in range(3):
        await world.webhook(receiver.url)
    pair = [Process(environment, tmp_path / f"replica-{number}.log") for number in (1, 2)]
    for process in pair:
        await process.start()
    try:
        for _ in range(20):
            await world.finish(await world.queue_job())

        async def all_delivered() -> bool:
            return await states(world) == ["delivered"] * 60

        await eventually(all_delivered, within_s=60)
    finally:
        assert [await process.stop() for process in pair] == [0, 0]
    assert len(receiver.received) == 60
    assert len({got.id for got in receiver.received}) == 20
    assert await world.count("select max(attempts) from webhook_deliveries") == 1
    assert all("webhook_attempt" in process.log.read_text() for process in pair), "both shared the work"
