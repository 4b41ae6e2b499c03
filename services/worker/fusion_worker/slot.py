"""The slot: idle or holding one claimed job, whoever offers it first."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import structlog
from fusion_core import failpoints
from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt, Claimer
from fusion_core.db.pool import POSTGRES_AWAY, Connection, Pool
from fusion_core.db.rows import JobRow

from fusion_worker.readiness import Readiness
from fusion_worker.retry import connection_within
from fusion_worker.settings import WorkerSettings

log = structlog.get_logger()
CLAIM_PATIENCE_S = 5.0
Claim = Callable[[Connection, UUID], Awaitable[JobRow | None]]


class Slot:
    """Doorbell and poll both claim through here, so that never two jobs are held."""

    def __init__(self, pool: Pool, claimer: Claimer, settings: WorkerSettings, readiness: Readiness) -> None:
        self._pool = pool
        self._claimer = claimer
        self._settings = settings
        self._readiness = readiness
        self._lock = asyncio.Lock()
        self._claimed: asyncio.Queue[tuple[JobRow, Attempt]] = asyncio.Queue()
        self._unanswered: deque[UUID] = deque(maxlen=10)  # claims that may have been made without our knowing
        self.busy = False
        self.closed = False

    @property
    def takes_jobs(self) -> bool:
        return not self.busy and not self.closed

    async def ring(self, job_id: UUID, epoch: int) -> bool:
        """The doorbell rang for a job at an epoch; a stale or repeated ring claims nothing."""
        ttl = self._settings.lease_ttl_s
        return await self._claim(lambda conn, attempt: attempts.claim(conn, self._claimer, job_id, epoch, attempt, ttl))

    async def look(self) -> bool:
        """Claim straight from Postgres."""
        ttl = self._settings.lease_ttl_s
        return await self._claim(lambda conn, attempt: attempts.claim_next(conn, self._claimer, attempt, ttl))

    async def _claim(self, claim: Claim) -> bool:
        async with self._lock:
            if not self.takes_jobs or not await self._readiness.ready():
                return False
            unanswered, attempt_id = tuple(self._unanswered), uuid4()
            self._unanswered.append(attempt_id)  # also when this is cancelled on its way
            failpoints.hit("claim.before")
            try:
                async with connection_within(self._pool, CLAIM_PATIENCE_S) as connection:
                    job = await attempts.held_by(connection, unanswered) if unanswered else None
                    job = job or await claim(connection, attempt_id)
            except POSTGRES_AWAY as error:
                log.warning("claim_failed", error=str(error))
                return False
            self._unanswered.clear()
            if job is None:
                return False
            failpoints.hit("claim.after")
            self.busy = True
            assert job.attempt_id is not None
            self._claimed.put_nowait((job, Attempt(job.id, job.lease_epoch, job.attempt_id)))
            return True

    async def settled(self) -> bool:
        """Whether a job is held, once a claim that is under way has been answered."""
        async with self._lock:
            return self.busy

    async def next(self, timeout_s: float) -> tuple[JobRow, Attempt] | None:
        """The claimed job, or None after `timeout_s`."""
        try:
            return await asyncio.wait_for(self._claimed.get(), timeout_s)
        except TimeoutError:
            return None
