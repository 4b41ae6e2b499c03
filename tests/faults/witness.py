"""Looks into Postgres all through a run: the invariants of rows hold at every moment, not only at the end."""

import asyncio
import threading
from collections.abc import Collection
from typing import Any

import asyncpg
from fusion_core.db.pool import POSTGRES_AWAY, connect
from fusion_local.stack import Stack

from tests.faults.history import History
from tests.integration.db import invariants

EVERY_S = 0.5


class Witness:
    """A thread with a connection of its own, past every proxy. Use as a context manager."""

    def __init__(self, stack: Stack, history: History) -> None:
        self._stack = stack
        self._history = history
        self._seen = invariants.History()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._watch()), name="witness", daemon=True)
        self.looks = 0

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._thread.join(60)

    async def _watch(self) -> None:
        while not self._leave.is_set():
            try:
                connection = await connect(self._stack.database_url(), application_name="witness")
                try:
                    while not self._leave.is_set():
                        await self._look(connection)
                        await asyncio.sleep(EVERY_S)
                finally:
                    connection.terminate()
            except (*POSTGRES_AWAY, asyncpg.PostgresError):
                await asyncio.sleep(EVERY_S)

    async def _look(self, connection: Any) -> None:
        jobs: Collection[Any] = await invariants.all_jobs(connection)
        found = [
            *await invariants.violations(connection, jobs),
            *await self._seen.observe(connection, jobs),
        ]
        self.looks += 1
        for violation in found:
            self._history.note("witness", "broken", rule=violation.rule, job=str(violation.job_id), what=str(violation))
