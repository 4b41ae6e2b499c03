"""What the daemons of a group say to each other: JSON messages, one a line, over one TCP connection a follower.

A connection serves one attempt at most. Whatever goes wrong, and the attempt's end, closes it: the follower then kills
its trainer, empties its folder and joins again, so no state of an attempt outlives it.
"""

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator
from typing import Self

import msgspec
from fusion_core.trainer_protocol import ContractRun, FileEntry, FinetuneRun, SampleRun, TrainRun

from fusion_worker.settings import Sharding, WorkerSettings

LONGEST_MESSAGE_BYTES = 8 * 2**20  # run.json and some ten thousand files
GroupRun = TrainRun | FinetuneRun | ContractRun | SampleRun


class NodeLostError(Exception):
    """Another machine of the group closed its connection, fell silent, or was not there in time."""


class _Message(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """One line."""


class Challenge(_Message, frozen=True, tag="challenge"):
    nonce: str


class Hello(_Message, frozen=True, tag="hello"):
    rank: int
    nonce: str
    proof: str


class Welcome(_Message, frozen=True, tag="welcome"):
    proof: str


class Beat(_Message, frozen=True, tag="beat"):
    pass


class StagedFile(msgspec.Struct, frozen=True):
    """An object of S3, and where in the run directory it belongs: `file.rel`."""

    key: str
    file: FileEntry


class Prepare(_Message, frozen=True, tag="prepare"):
    """Bring these inputs to local disk. `run_dir` is the leader's: the paths in `run` begin with it."""

    run: GroupRun
    run_dir: str
    files: tuple[StagedFile, ...]
    sharding: Sharding


class Prepared(_Message, frozen=True, tag="prepared"):
    pass


class Launch(_Message, frozen=True, tag="launch"):
    pass


class Ended(_Message, frozen=True, tag="ended"):
    """The follower's part is over; `code`, one of fusion_core.problems, where it ended in a fault."""

    code: str | None
    message: str


class Leaving(_Message, frozen=True, tag="leaving"):
    """The follower is to end: the attempt should stop at a checkpoint."""


Message = Challenge | Hello | Welcome | Beat | Prepare | Prepared | Launch | Ended | Leaving
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class Link:
    """One end of a connection between leader and follower. Silence for longer than the lease lives ends it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: WorkerSettings) -> None:
        self._reader = reader
        self._writer = writer
        self._secret = settings.group_secret.encode()
        self._silence_s = settings.lease_ttl_s
        self._beat_s = settings.heartbeat_s

    @classmethod
    async def open(cls, settings: WorkerSettings) -> Self:
        """Connect to the leader. Raises NodeLostError."""
        try:
            async with asyncio.timeout(settings.lease_ttl_s):
                streams = await asyncio.open_connection(
                    settings.leader_host, settings.group_port, limit=LONGEST_MESSAGE_BYTES
                )
        except (OSError, TimeoutError) as error:
            raise NodeLostError(f"{settings.leader_host}:{settings.group_port}: {error!r}") from error
        return cls(*streams, settings)

    async def send(self, message: Message) -> None:
        """Raises NodeLostError."""
        try:
            async with asyncio.timeout(self._silence_s):
                self._writer.write(msgspec.json.encode(message) + b"\n")
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise NodeLostError(f"it takes no messages: {error!r}") from error

    async def receive(self) -> Message:
        """The next message that is not a heartbeat. Raises NodeLostError."""
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    line = await self._reader.readline()
                message = _decoder.decode(line) if line else None
            except TimeoutError:
                raise NodeLostError(f"it was silent for {self._silence_s:g} s") from None
            except (OSError, ValueError) as error:  # a line without end, or one that is no message, is a ValueError
                raise NodeLostError(f"its connection broke: {error}") from error
            if message is None:
                raise NodeLostError("it closed its connection")
            if not isinstance(message, Beat):
                return message

    @contextlib.asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Heartbeats beside the block; the connection is closed at its end."""
        task = asyncio.create_task(self._beat_for_ever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.close()

    async def _beat_for_ever(self) -> None:
        while True:
            await self.send(Beat())
            await asyncio.sleep(self._beat_s)

    def close(self) -> None:
        self._writer.close()

    # Each side proves that it knows the secret, which never travels, for a nonce of the other's choice (RFC 2104).

    async def admit(self, nodes: int) -> int:
        """The leader's half of the greeting; answers the follower's rank. Raises NodeLostError."""
        challenge = secrets.token_hex(32)
        await self.send(Challenge(challenge))
        hello = await self.receive()
        if not isinstance(hello, Hello) or not self._proves(
            hello.proof, "follower", hello.rank, challenge, hello.nonce
        ):
            raise NodeLostError("it does not know the group's secret")
        if not 0 < hello.rank < nodes:
            raise NodeLostError(f"its rank {hello.rank} is none of a group of {nodes}")
        await self.send(Welcome(self._proof("leader", hello.rank, hello.nonce, challenge)))
        return hello.rank

    async def greet(self, rank: int) -> None:
        """The follower's half. Raises NodeLostError."""
        challenge, nonce = await self.receive(), secrets.token_hex(32)
        if not isinstance(challenge, Challenge):
            raise NodeLostError("it is no leader of a group")
        await self.send(Hello(rank, nonce, self._proof("follower", rank, challenge.nonce, nonce)))
        welcome = await self.receive()
        if not isinstance(welcome, Welcome) or not self._proves(welcome.proof, "leader", rank, nonce, challenge.nonce):
            raise NodeLostError("it does not know the group's secret")

    def _proof(self, role: str, rank: int, theirs: str, ours: str) -> str:
        return hmac.new(self._secret, f"{role}:{rank}:{theirs}:{ours}".encode(), hashlib.sha256).hexdigest()

    def _proves(self, proof: str, role: str, rank: int, ours: str, theirs: str) -> bool:
        return hmac.compare_digest(proof.encode(), self._proof(role, rank, ours, theirs).encode())
