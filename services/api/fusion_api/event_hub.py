"""One connection a process looks for new events of the jobs that streams follow, and wakes those streams.

It asks several times a second instead of having Postgres notify: a transaction that notifies holds one lock for the
whole server until its commit is on disk, so that every worker's events would wait for every other's (docs/scale.md).
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Self, TypeVar
from uuid import UUID

import asyncpg
import structlog
from fusion_core.db.pool import POSTGRES_AWAY, OwnConnection, connect, queries

log = structlog.get_logger()
T = TypeVar("T")
RECONNECT_S = 1.0
POLL_S = 0.25  # a stream ends within a second of its key's end, too


class EventHub:
    """Rings the bells of streams, within POLL_S of an event.

    One question serves all jobs that are followed; however many streams follow a job, an event costs one look into
    Postgres.
    """

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._bells: defaultdict[UUID, set[asyncio.Event]] = defaultdict(set)
        self._rung: dict[UUID, int] = {}  # how often the bells of a job have been rung
        self._seqs: dict[UUID, int] = {}  # of each job when it was last polled
        self._keys: defaultdict[UUID, set[asyncio.Event]] = defaultdict(set)  # the bells of each API key's streams
        self._dead_keys: set[UUID] = set()
        self._reads: dict[Any, asyncio.Task[Any]] = {}
        self.closing = False
        self._task: asyncio.Task[None] | None = None
        self.looked_at = time.time()
        """When the loop last turned with Postgres in sight, in Unix time."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def streams(self) -> int:
        """How many wait for something new."""
        return sum(len(bells) for bells in list(self._bells.values()))

    @contextlib.contextmanager
    def bell(self, job_id: UUID, key_id: UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may have something new, or the key has ended (`is_dead`).

        Clear it, look, then wait for it.
        """
        bell = asyncio.Event()
        self._bells[job_id].add(bell)
        self._keys[key_id].add(bell)
        try:
            yield bell
        finally:
            self._keys[key_id].discard(bell)
            if not self._keys[key_id]:
                del self._keys[key_id]
                self._dead_keys.discard(key_id)
            self._bells[job_id].discard(bell)
            if not self._bells[job_id]:
                del self._bells[job_id]
                self._rung.pop(job_id, None)
                self._seqs.pop(job_id, None)

    def is_dead(self, key_id: UUID) -> bool:
        """Has the key of a stream been revoked, or has it expired?"""
        return key_id in self._dead_keys

    async def read_once(self, job_id: UUID, after: int, read: Callable[[], Awaitable[T]]) -> T:
        """`read()`, shared by all streams of a job at one cursor that were rung for the same news."""
        key = (job_id, after, self._rung.get(job_id, 0))
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.ensure_future(_awaited(read))
            task.add_done_callback(lambda _: self._reads.pop(key, None))
        result: T = await asyncio.shield(task)  # a stream that breaks off takes the answer from nobody
        return result

    def close(self) -> None:
        """Ring every bell for the last time: streams look at `closing` and end."""
        self.closing = True
        for job_id in list(self._bells):
            self._ring(job_id)

    def _ring(self, job_id: UUID) -> None:
        self._rung[job_id] = self._rung.get(job_id, 0) + 1
        for bell in self._bells.get(job_id, ()):
            bell.set()

    async def _watch(self) -> None:
        while True:
            try:
                connection = await connect(self._database_url, application_name="fusion-api-events")
                try:
                    while not connection.is_closed():
                        if self._bells:
                            await self._poll_keys(connection)
                            await self._poll(connection)
                        self.looked_at = time.time()
                        await asyncio.sleep(POLL_S)
                finally:
                    connection.terminate()
            except (*POSTGRES_AWAY, asyncpg.PostgresError) as error:
                log.warning("events_out_of_sight", error=str(error), again_in_s=RECONNECT_S)
            await asyncio.sleep(RECONNECT_S)

    async def _poll_keys(self, connection: OwnConnection) -> None:
        """Ring the streams whose key has ended."""
        async for row in queries.ended_api_keys(connection, key_ids=list(self._keys)):
            if row["id"] in self._keys:
                self._dead_keys.add(row["id"])
                for bell in self._keys[row["id"]]:
                    bell.set()

    async def _poll(self, connection: OwnConnection) -> None:
        """Ring the streams of each job that has an event since the last time."""
        async for row in queries.event_seqs(connection, job_ids=list(self._bells)):
            if row["id"] in self._bells and self._seqs.get(row["id"]) != row["event_seq"]:
                self._seqs[row["id"]] = row["event_seq"]
                self._ring(row["id"])


async def _awaited(read: Callable[[], Awaitable[T]]) -> T:
    return await read()
