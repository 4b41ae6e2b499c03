"""One job over two machines with addresses of their own: a follower dies, and a cable is cut, in the middle of it."""

from collections.abc import Iterator
from typing import Any

import pytest
from fusion_client import JobDetail
from fusion_local.stack import HOST

from tests.e2e.network import Network, NotPermittedError
from tests.faults.proxy import Proxy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
LEADER, FOLLOWER = 0, 1


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        with Network(2) as network:
            yield network
    except NotPermittedError as error:
        pytest.skip(str(error))


class Group:
    """The daemons of one slot, a machine each. They reach the stores by this machine's address."""

    def __init__(self, platform: Any, network: Network, proxy: Proxy) -> None:
        self._platform, self._network = platform, network
        stack = platform.stack

        def outward(url: str, port: int) -> str:
            way = f"{network.gateway}:{proxy.link(str(port), port, network.gateway)}"
            return url.replace(f"{HOST}:{port}", way)

        s3 = {"s3_endpoint": outward(stack.s3_endpoint, stack.s3_port)}
        database = outward(stack.database_url(), stack.postgres_port)
        self._stores = [
            s3 | {"database_url": database, "redis_url": outward(stack.redis_url, stack.valkey_port)},
            s3 | {"database_url": "", "redis_url": ""},
        ]
        self._names: dict[int, str] = {}

    def start(self, machine: int) -> None:
        self._names[machine] = self._platform.start_worker(
            "training",
            within=self._network.within(machine),
            nodes=2,
            node_rank=machine,
            leader_host=self._network.address(LEADER),
            group_host=self._network.address(LEADER),
            group_secret="a secret of both machines",
            **self._stores[machine],
        )

    def kill(self, machine: int) -> None:
        self._platform.stack.processes.kill(self._names.pop(machine))

    def stop(self) -> None:
        for name in self._names.values():
            self._platform.stack.processes.stop(name)


@pytest.fixture(scope="module")
def group(platform: Any, network: Network) -> Iterator[Group]:
    with Proxy() as proxy:
        group = Group(platform, network, proxy)
        group.start(LEADER)
        group.start(FOLLOWER)
        yield group
        group.stop()


@pytest.fixture(scope="module")
def undisturbed(platform: Any, group: Group) -> JobDetail:
    job: JobDetail = platform.completed(platform.submit("two-networks"))
    assert job.retries == 0
    assert platform.client.result(job.id).reproducibility["world_size"] == 2
    return job


def is_training(job: JobDetail) -> bool:
    return 0 < job.last_checkpoint_step < 20


async def same(platform: Any, job: JobDetail, undisturbed: JobDetail) -> bool:
    """The model's bytes, and the price."""
    assert platform.exported(job) == platform.exported(undisturbed)
    return bool(await platform.ledger(job.id) == await platform.ledger(undisturbed.id))


async def test_a_machine_that_dies_changes_nothing_in_the_model(
    platform: Any, group: Group, undisturbed: JobDetail
) -> None:
    job_id = platform.submit("two-networks-killed")
    platform.wait(job_id, is_training)
    group.kill(FOLLOWER)
    platform.wait(job_id, lambda job: job.retries == 1)
    group.start(FOLLOWER)
    job = platform.completed(job_id)
    assert job.retries == 1
    assert await same(platform, job, undisturbed)


async def test_a_cut_cable_ends_the_attempt_on_both_sides_and_changes_nothing_in_the_model(
    platform: Any, group: Group, network: Network, undisturbed: JobDetail
) -> None:
    job_id = platform.submit("two-networks-cut")
    platform.wait(job_id, is_training)
    assert platform.trainers()
    network.cut(FOLLOWER)
    try:
        platform.wait(job_id, lambda job: job.retries == 1)
        platform.wait(job_id, lambda _: not platform.trainers())
        assert platform.client.get_job(job_id).status == "preempted", "it waits for the group to be whole"
    finally:
        network.mend(FOLLOWER)
    job = platform.completed(job_id)
    assert job.retries == 1
    assert await same(platform, job, undisturbed)
