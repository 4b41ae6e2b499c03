"""A whole service in small, over the real SQL: what customers, workers, sweeps and operators do, one step a call.

Each step knows from the rows before it what must come of it, and says so in assertions; what must hold after any step
is `invariants.py`.
"""

from typing import Any
from uuid import UUID

import msgspec
import structlog
from fusion_core.db import admin, sweep, webhooks
from fusion_core.db.attempts import Attempt
from fusion_core.db.audit import By
from fusion_core.states import LOSS_LIMIT, TERMINAL, State
from fusion_orchestrator import retention
from fusion_orchestrator.prune import Pruner
from fusion_orchestrator.settings import RetentionSettings

from tests.integration.db.fleet_customers import GAP_S, TTL_S
from tests.integration.db.fleet_workers import Workers

RETENTION = RetentionSettings(database_url="", s3_endpoint="", s3_access_key="", s3_secret_key="", keep_checkpoints=2)
BY = By("on-call", "a test")


class Fleet(Workers):
    """Customers, workers, the sweeps, the webhooks, and the person on call."""

    # -- the platform ------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Leases that have run out are taken back, and others not; none after a gap in the sweeps."""
        now, before = await self.clock.now(), {row["id"]: row for row in await self.rows()}
        if self.last_sweep is None or (now - self.last_sweep).total_seconds() > GAP_S:
            self.reclaim_after = now.timestamp() + TTL_S
        self.last_sweep = now
        may = await sweep.begin_sweep(self.conn, ttl_s=TTL_S, gap_s=GAP_S)
        assert may == (now.timestamp() >= self.reclaim_after)
        if not may:
            return
        expired = {
            job_id for job_id, row in before.items() if row["state"] == "running" and row["lease_expires_at"] < now
        }
        reclaimed = await sweep.reclaim_expired(self.conn)
        assert {job.id for job in reclaimed} == expired
        for job in reclaimed:
            row = before[job.id]
            if row["cancel_requested_at"] is None and row["stop_requested_at"] is None:
                assert (job.quarantined_at is not None) == (row["losses"] + 1 >= LOSS_LIMIT)

    async def reclaim(self, attempt: Attempt) -> None:
        """A reaper that works from what it read long ago."""
        before = await self.row(attempt.job_id)
        expires_at = await self.conn.fetchval("select lease_expires_at from jobs where id = $1", attempt.job_id)
        may = (
            before.state == State.RUNNING
            and before.lease_epoch == attempt.epoch
            and expires_at < await self.clock.now()
        )
        assert (await sweep.reclaim(self.conn, attempt.job_id, attempt.epoch) is not None) == may
        assert may or await self.row(attempt.job_id) == before

    async def ring(self) -> tuple[UUID, int] | None:
        """The bell rings for the head of the queue, once of two replicas that saw it; (job, epoch) of the ring."""
        due = await sweep.due_rings(self.conn, depth=1, again_s=5)
        mine = [one for one in due if one.pool == self.pool]
        assert {one.job_id for one in mine} <= {candidate[3] for candidate in await self._claimable()}
        if not mine:
            return None
        won = [await sweep.ring(self.conn, mine) for _ in range(2)]
        assert [[ring.ring_count for ring in rings] for rings in won] == [[mine[0].ring_count + 1], []]
        return mine[0].job_id, mine[0].epoch

    async def expire_stopped(self) -> None:
        before = await self.rows()
        old = await self.clock.now()
        due = [row for row in before if row["state"] == "stopped" and (old - row["stopped_at"]).days >= 30]
        assert await sweep.expire_stopped(self.conn) >= len(due) - 1  # exactly 30 days is not longer than 30 days

    async def prune(self) -> None:
        with structlog.testing.capture_logs():
            await Pruner(self.world.pool, self.bucket, model_days=7).run()  # type: ignore[arg-type]  # a bucket in memory

    async def retain(self) -> None:
        with structlog.testing.capture_logs():
            await retention.enforce(self.conn, RETENTION)
        await webhooks.forget_old(self.conn)

    async def fan_out(self) -> None:
        while await webhooks.fan_out(self.conn, limit=100):
            pass

    async def deliver(self, outcome: Any) -> None:
        """One attempt of what is due: claimed once, recorded once, and by a stale attempt not at all."""
        for ring in await webhooks.ring_due(self.conn, again_s=5, limit=1):
            delivery = await webhooks.claim(self.conn, ring.delivery_id, lease_s=TTL_S)
            assert delivery is not None
            assert await webhooks.claim(self.conn, ring.delivery_id, lease_s=TTL_S) is None
            answer = webhooks.Answer(outcome=outcome, retry_s=60 if outcome == "retry" else None)
            stale = msgspec.structs.replace(delivery, epoch=delivery.epoch - 1)
            assert not await webhooks.record(
                self.conn, stale, msgspec.structs.replace(answer, outcome="retry", retry_s=1)
            )
            assert await webhooks.record(self.conn, delivery, answer)
            assert outcome == "retry" or not await webhooks.record(self.conn, delivery, answer)

    # -- operators ---------------------------------------------------------------------------------------------------

    async def pause(self, account: int | None, pause: bool) -> None:
        """Of an account, or of the pool."""
        chosen = (self.pool, None) if account is None else (None, self.accounts[account])
        for again in (False, True):
            done = await admin.pause_dispatch(self.conn, BY, pool=chosen[0], account_id=chosen[1], pause=pause)
            assert not (again and done.changed), "an action that is repeated changes nothing"

    async def cordon(self, cordon: bool) -> None:
        await admin.cordon_pool(self.conn, BY, self.pool, cordon=cordon)

    async def drain_worker(self, worker: int, drain: bool) -> None:
        await admin.drain_worker(self.conn, BY, self.workers[worker].worker_id, drain=drain)

    async def prioritise(self, job_id: UUID, priority: int) -> None:
        await admin.change_priority(self.conn, BY, job_id, priority)

    async def requeue(self, job_id: UUID) -> None:
        before = await self.row(job_id)
        await admin.requeue_job(self.conn, BY, job_id)
        after = await self.row(job_id)
        assert before.state not in TERMINAL or after == before
        assert after.state != State.QUEUED or after.quarantined_at is None
        assert after.retries == before.retries

    async def fail_job(self, job_id: UUID) -> None:
        before = await self.row(job_id)
        await admin.fail_job(self.conn, BY, job_id)
        after = await self.row(job_id)
        assert after.state in TERMINAL
        assert before.state not in TERMINAL or after == before

    async def take_job(self, job_id: UUID, force: bool) -> None:
        """An operator reclaims it: a lease that is alive only by force."""
        before = await self.row(job_id)
        expires_at = await self.conn.fetchval("select lease_expires_at from jobs where id = $1", job_id)
        alive = expires_at is not None and expires_at >= await self.clock.now()
        try:
            await admin.reclaim_job(self.conn, BY, job_id, force=force)
        except admin.LeaseAliveError:
            assert alive
            assert not force
            return
        assert force or not alive
        after = await self.row(job_id)
        assert (after == before) if before.state != State.RUNNING else (after.state != State.RUNNING)

    async def end_overdue(self) -> None:
        now, found = await self.clock.now(), await self.rows()
        late = {
            row["id"]
            for row in found
            if row["state"] in ("queued", "running") and row["deadline_at"] is not None and row["deadline_at"] < now
        }
        assert {job.id for job in await sweep.end_overdue(self.conn)} == late

    # -- the end -----------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Once the weather clears every job ends: none is stuck in any state that the steps have left it in."""
        await self.cordon(False)
        for account in (None, 0, 1):
            await self.pause(account, False)
        for worker in range(len(self.workers)):
            await self.drain_worker(worker, False)
        for _ in range(3 * len(self.jobs) + 3):
            await self.clock.advance(2000)
            await self.sweep()
            await self.clock.advance(TTL_S)
            await self.sweep_leases()
            for row in await self.rows():
                if row["quarantined_at"] is not None and row["state"] == "queued":
                    await self.requeue(row["id"])
                if row["state"] == "stopped":
                    await self.resume(row["id"])
            await self.end_overdue()
            while (attempt := await self.claim_next(0)) is not None:
                await self.complete(attempt)
            if all(row["state"] in TERMINAL for row in await self.rows()):
                break
        await self.fan_out()
        assert [row["state"] for row in await self.rows() if row["state"] not in TERMINAL] == []

    async def sweep_leases(self) -> None:
        """Sweeps without a gap until leases of before it are over."""
        for _ in range(3):
            await self.clock.advance(GAP_S)
            await self.sweep()

    async def leave(self) -> None:
        await self.world.pool.release(self.conn)
