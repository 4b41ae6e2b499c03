"""Keeping the lease alive, and passing on what its reply says."""

import asyncio
import contextlib
import time
from pathlib import Path

import structlog
from fusion_core.db import attempts
from fusion_core.db.attempts import Attempt, LeaseLostError, Renewal
from fusion_core.db.pool import POSTGRES_AWAY, Pool
from fusion_core.trainer_protocol import StopReason, write_control

from fusion_worker.metrics import Metrics
from fusion_worker.retry import connection_within
from fusion_worker.settings import WorkerSettings

log = structlog.get_logger()
AGAIN_S = 1.0  # after a renewal that failed


class Heartbeat:
    """Renews until cancelled. Ends with LeaseLostError, or by itself once cut off past the isolation limit."""

    def __init__(self, pool: Pool, settings: WorkerSettings, attempt: Attempt, run_dir: Path, metrics: Metrics) -> None:
        self._pool = pool
        self._settings = settings
        self._attempt = attempt
        self._run_dir = run_dir
        self._metrics = metrics
        self._stop: StopReason | None = None
        self.asked = asyncio.Event()
        """Set once the trainer has been asked to stop, for whatever reason."""
        self._last_renewal = time.monotonic()

    @property
    def stop_reason(self) -> StopReason | None:
        return self._stop

    def ask_to_stop(self, reason: StopReason) -> None:
        """Cancel outranks stop, stop outranks drain; an earlier, weaker wish is replaced."""
        rank = {"drain": 0, "stop": 1, "cancel": 2}
        if self._stop is not None and rank[self._stop] >= rank[reason]:
            return
        self._stop = reason
        self.asked.set()
        with contextlib.suppress(FileNotFoundError):  # the attempt begins only now, and tells its trainer by itself
            write_control(self._run_dir, reason)
        log.info("trainer_asked_to_stop", reason=reason)

    async def _renew(self) -> Renewal:
        """Within two heartbeats: a connection that fell silent must not outlast the lease, nor others like it."""
        async with connection_within(self._pool, self._settings.heartbeat_s) as connection:
            return await attempts.renew(connection, self._attempt, self._settings.lease_ttl_s)

    async def run(self) -> None:
        """Raises LeaseLostError when the job has passed to somebody else."""
        pause_s = self._settings.heartbeat_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self._settings.heartbeat_s
            try:
                renewal = await self._renew()
            except POSTGRES_AWAY as error:
                pause_s = min(pause_s, AGAIN_S)
                self._metrics.renewals.labels("missed").inc()
                cut_off_s = time.monotonic() - self._last_renewal
                log.warning("heartbeat_missed", error=str(error), cut_off_s=round(cut_off_s, 1))
                if cut_off_s > self._settings.isolation_limit_s:
                    self.ask_to_stop("drain")
                continue
            except LeaseLostError:
                self._metrics.renewals.labels("lost").inc()
                log.warning("lease_lost")
                raise
            self._last_renewal = time.monotonic()
            self._metrics.renewals.labels("renewed").inc()
            if renewal.cancel:
                self.ask_to_stop("cancel")
            elif renewal.stop:
                self.ask_to_stop("stop")
