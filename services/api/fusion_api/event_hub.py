"""One LISTEN connection a process wakes every stream whose job has a new event."""

import asyncio
import contextlib
from collections import defaultdict
from typing import Any, Self

import asyncpg
import structlog
from fusion_core.db.pool import POSTGRES_AWAY, connect

log = structlog.get_logger()
RECONNECT_S = 1.0
CHECK_S = 5.0


class EventHub:
    """Wakes waiters; a missed notification costs them their own polling interval, never an event."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.closing = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def wait(self, job_id: str, timeout_s: float) -> None:
        """Return when the job has a new event, or after the time-out."""
        event = asyncio.Event()
        self._waiters[job_id].add(event)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), timeout_s)
        finally:
            self._waiters[job_id].discard(event)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    def close(self) -> None:
        """Wake every waiter for the last time: streams look at `closing` and end."""
        self.closing = True
        for events in self._waiters.values():
            for event in events:
                event.set()

    def _wake(self, _connection: Any, _pid: int, _channel: str, job_id: object) -> None:
        for event in self._waiters.get(str(job_id), ()):
            event.set()

    async def _listen(self) -> None:
        while True:
            try:
                connection = await connect(self._database_url, application_name="fusion-api-listen")
                try:
                    await connection.add_listener("job_event", self._wake)
                    while not connection.is_closed():
                        await asyncio.sleep(CHECK_S)
                        await connection.execute("select 1")
                finally:
                    connection.terminate()
            except (*POSTGRES_AWAY, asyncpg.PostgresError) as error:
                log.warning("listen_lost", error=str(error), again_in_s=RECONNECT_S)
            await asyncio.sleep(RECONNECT_S)
