"""The leader's side of a group of machines that work at one job: all of them, or none."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import structlog

from fusion_worker.crash_reason import CrashReason
from fusion_worker.group_link import (
    LONGEST_MESSAGE_BYTES,
    Ended,
    GroupRun,
    Launch,
    Leaving,
    Link,
    NodeLostError,
    Prepare,
    Prepared,
    StagedFile,
)
from fusion_worker.settings import Sharding, WorkerSettings

log = structlog.get_logger()


class GroupIncompleteError(Exception):
    """The group was not whole within FUSION_GROUP_DEADLINE_S."""


class Member:
    """A follower that has joined. `fault` is answered when its part of the attempt cannot end well any more."""

    def __init__(self, rank: int, link: Link) -> None:
        self.rank = rank
        self.link = link
        self.leaving = False
        self.prepared = asyncio.Event()
        self.fault: asyncio.Future[CrashReason] = asyncio.get_running_loop().create_future()

    async def listen(self, on_leaving: Callable[[], None]) -> None:
        """Until the connection ends. Raises NodeLostError."""
        while True:
            match await self.link.receive():
                case Prepared():
                    self.prepared.set()
                case Ended(code=str(code), message=message):
                    self.fail(CrashReason(code, f"node {self.rank}: {message}"))
                case Leaving():
                    self.leaving = True
                    on_leaving()
                case _:
                    pass

    def fail(self, reason: CrashReason) -> None:
        """The first reason stands."""
        if not self.fault.done():
            self.fault.set_result(reason)


class Followers:
    """The other machines of one attempt. Closed, they kill their trainers and join the group anew."""

    def __init__(self, members: Sequence[Member], sharding: Sharding) -> None:
        self._members = members
        self._sharding = sharding

    async def prepare(self, run: GroupRun, run_dir: Path, files: Sequence[StagedFile]) -> CrashReason | None:
        """Have all inputs brought to every machine; answers what went wrong on one. Raises NodeLostError."""
        for member in self._members:
            await member.link.send(Prepare(run, str(run_dir), tuple(files), self._sharding))
        prepared = asyncio.create_task(self._all_prepared())
        fault = asyncio.create_task(self.fault())
        try:
            await asyncio.wait((prepared, fault), return_when=asyncio.FIRST_COMPLETED)
            return fault.result() if fault.done() else None
        finally:
            fault.cancel()
            prepared.cancel()
            await asyncio.gather(fault, prepared, return_exceptions=True)

    async def _all_prepared(self) -> None:
        for member in self._members:
            await member.prepared.wait()

    async def launch(self) -> None:
        """Raises NodeLostError."""
        for member in self._members:
            await member.link.send(Launch())

    async def fault(self) -> CrashReason:
        """The first that goes wrong on any machine."""
        done, _ = await asyncio.wait({member.fault for member in self._members}, return_when=asyncio.FIRST_COMPLETED)
        return min((future.result() for future in done), key=lambda reason: reason.code != "node_lost")

    def close(self) -> None:
        for member in self._members:
            member.link.close()


class Group:
    """Followers join here; as an asynchronous context manager, which listens for them."""

    def __init__(self, settings: WorkerSettings, on_leaving: Callable[[], None]) -> None:
        self._settings = settings
        self._on_leaving = on_leaving
        self._members: dict[int, Member] = {}
        self._broken_since = time.monotonic()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Group":
        """Raises OSError where the port is taken."""
        host, port = self._settings.group_host, self._settings.group_port
        self._server = await asyncio.start_server(self._connected, host, port, limit=LONGEST_MESSAGE_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def _complete(self) -> bool:
        return len(self._members) == self._settings.nodes - 1

    @property
    def whole(self) -> bool:
        """Every machine has joined and means to stay."""
        return self._complete and not any(member.leaving for member in self._members.values())

    def check_deadline(self) -> None:
        """Raises GroupIncompleteError: what is here is worth more in another group."""
        waited_s = time.monotonic() - self._broken_since
        if not self.whole and waited_s > self._settings.group_deadline_s:
            missing = sorted(set(range(1, self._settings.nodes)) - set(self._members))
            raise GroupIncompleteError(f"nodes {missing} were not there for {waited_s:.0f} s; look at their logs")

    def take(self) -> Followers:
        """The followers, for one attempt. Raises NodeLostError where one is not there any more."""
        if not self.whole:
            raise NodeLostError("a node left the group before the attempt began")
        return Followers(tuple(self._members.values()), self._settings.sharding)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        link = Link(reader, writer, self._settings)
        try:
            async with asyncio.timeout(self._settings.lease_ttl_s):  # a stranger's heartbeats buy no more
                rank = await link.admit(self._settings.nodes)
            await self._joined(Member(rank, link))
        except (NodeLostError, TimeoutError) as error:
            log.warning("node_refused", peer=str(writer.get_extra_info("peername")), error=str(error))
        finally:
            link.close()
            self._connections.discard(task)

    async def _joined(self, member: Member) -> None:
        """One that joins again takes the place of what it was: that connection is dead, if not yet silent for long."""
        before = self._members.pop(member.rank, None)
        if before is not None:
            before.fail(CrashReason("node_lost", f"node {member.rank} started again"))
            before.link.close()
        self._members[member.rank] = member
        log.info("node_joined", rank=member.rank, whole=self.whole)
        try:
            async with member.link.beating():
                await member.listen(self._on_leaving)
        except NodeLostError as error:
            log.info("node_left", rank=member.rank, reason=str(error))
            member.fail(CrashReason("node_lost", f"node {member.rank}: {error}"))
        finally:
            if self._members.get(member.rank) is member:
                if self._complete:
                    self._broken_since = time.monotonic()
                del self._members[member.rank]
