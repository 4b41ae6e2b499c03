"""One job over two machines, played by two daemons with folders of their own: gloo between them, kill -9 of one."""

from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from fusion_local.stack import HOST, free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


class Group:
    """Two daemons of one slot."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform
        group_port, rendezvous_port = free_ports(2)
        self._shared = {
            "nodes": 2,
            "leader_host": HOST,
            "group_host": HOST,
            "group_port": group_port,
            "rendezvous_port": rendezvous_port,
            "group_secret": "a secret of both machines",
        }
        self._started: list[str] = []

    def start(self, rank: int) -> str:
        name = str(self._platform.start_worker("training", node_rank=rank, **self._shared))
        self._started.append(name)
        return name

    def kill(self, name: str) -> None:
        psutil.Process(self._platform.stack.processes.pid(name)).kill()

    def stop(self) -> None:
        for name in self._started:
            self._platform.stack.processes.stop(name)


@pytest.fixture
def group(platform: Any) -> Iterator[Group]:
    group = Group(platform)
    yield group
    group.stop()


async def test_a_follower_killed_in_training_changes_nothing_in_the_model(platform: Any, group: Group) -> None:
    group.start(0)
    follower = group.start(1)
    undisturbed = platform.completed(platform.submit("two-nodes"))
    assert undisturbed.retries == 0
    assert platform.client.result(undisturbed.id).reproducibility["world_size"] == 2

    job_id = platform.submit("two-nodes-killed")
    platform.wait(job_id, lambda job: 0 < job.last_checkpoint_step < 20)
    group.kill(follower)
    platform.wait(job_id, lambda job: job.retries == 1)
    group.start(1)
    job = platform.completed(job_id)
    assert job.retries == 1
    assert platform.exported(job) == platform.exported(undisturbed)
    assert await platform.ledger(job_id) == await platform.ledger(undisturbed.id)
