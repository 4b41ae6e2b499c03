"""What workers do, one step a call: attempts that hold their job, attempts that held it, and forged ones."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

from fusion_core.db import attempts, checkpoints
from fusion_core.db.attempts import Attempt, CancelPendingError, LeaseLostError, WorkerEvent
from fusion_core.db.pool import queries
from fusion_core.db.rehearsal_pools import complete_sample
from fusion_core.db.rows import JobRow
from fusion_core.states import CRASH_BUDGET, State
from fusion_core.trainer_protocol import FileEntry

from tests.integration.db.conftest import MANIFEST, SHA
from tests.integration.db.fleet_customers import TTL_S, Customers


class Workers(Customers):
    """Three workers of one pool."""

    async def _claimable(self) -> list[tuple[Any, ...]]:
        """(priority, the account's running jobs, age, id) of what may be claimed, best first: the documented order."""
        found = await self.rows()
        now = await self.clock.now()
        pauses = await self.conn.fetch("select pool, account_id from dispatch_pauses")
        cordoned = await self.conn.fetchval("select cordoned_at is not null from pools where name = $1", self.pool)
        limits = dict(await self.conn.fetch("select id, max_running_jobs from accounts"))
        running = {row["account_id"]: 0 for row in found}
        for row in found:
            running[row["account_id"]] += row["state"] == "running"
        sampling = {
            row["base_model_id"]
            for row in found
            if row["type"] == "sample" and row["state"] in ("queued", "running") and row["quarantined_at"] is None
        }
        return sorted(
            (-row["priority"], running[row["account_id"]], row["created_at"], row["id"])
            for row in found
            if row["state"] == "queued" and row["quarantined_at"] is None and row["not_before"] <= now and not cordoned
            if row["cancel_requested_at"] is None and row["stop_requested_at"] is None
            if row["deadline_at"] is None or row["deadline_at"] > now
            if running[row["account_id"]] < limits[row["account_id"]]
            if not any(p["pool"] in (None, self.pool) and p["account_id"] in (None, row["account_id"]) for p in pauses)
            if row["internal"]
            or row["base_model_id"] not in sampling
            or (now - row["created_at"]).total_seconds() > 1800
        )

    async def _works(self, worker: int) -> bool:
        """Whether it may claim: nobody drains it."""
        draining = await self.conn.fetchval(
            "select drain_requested_at from workers where id = $1", self.workers[worker].worker_id
        )
        return draining is None

    async def claim_next(self, worker: int) -> Attempt | None:
        """Claims the best that may be claimed, and nothing where nothing may."""
        expected = await self._claimable() if await self._works(worker) else []
        attempt_id = uuid4()
        job = await attempts.claim_next(self.conn, self.workers[worker], attempt_id, TTL_S)
        assert (job is None) == (not expected)
        if job is None:
            return None
        best = [candidate for candidate in expected if candidate[:3] == expected[0][:3]]
        assert job.id in [candidate[3] for candidate in best]
        return await self._claimed(worker, job, attempt_id)

    async def claim(self, worker: int, job_id: UUID, epoch: int) -> Attempt | None:
        """By name, as a ring says it: claimed if it may be claimed and the epoch is that of the row."""
        before = await self.row(job_id)
        may = job_id in [candidate[3] for candidate in await self._claimable()] and epoch == before.lease_epoch
        may = may and await self._works(worker)
        attempt_id = uuid4()
        claimed = [
            await attempts.claim(self.conn, self.workers[worker], job_id, epoch, attempt_id, TTL_S)
            for _ in range(2)  # as if the first answer had been lost
        ]
        assert len({(job.id, job.lease_epoch) if job else None for job in claimed}) == 1
        assert (claimed[0] is not None) == may
        return None if claimed[0] is None else await self._claimed(worker, claimed[0], attempt_id)

    async def _claimed(self, worker: int, job: JobRow, attempt_id: UUID) -> Attempt:
        await self._at_work(self.workers[worker].worker_id, job.id)
        self.numbers[attempt_id] = 0
        self.attempts.append(Attempt(job.id, job.lease_epoch, attempt_id))
        return self.attempts[-1]

    async def attempt(self, place: int) -> Attempt | None:
        """Below 6 one that holds its job, claimed now if there is none; then any, and from 8 on half of its fence: the
        attempt at another epoch, or another attempt at its epoch, as a failover may leave it."""
        holding = [attempt for attempt in self.attempts if await self.holds(attempt)]
        if place < 6 and not holding:
            return await self.claim_next(place % len(self.workers))
        if place < 6 or not self.attempts:
            return holding[place % len(holding)] if holding else None
        chosen = (holding[-1:] or self.attempts[-1:])[0]
        if place < 8:
            return self.attempts[len(self.attempts) // (place - 5) - 1]
        if place == 8:
            return Attempt(chosen.job_id, chosen.epoch - 1, chosen.attempt_id)
        return Attempt(chosen.job_id, chosen.epoch, uuid4())

    async def _at_work(self, worker_id: UUID, job_id: UUID) -> None:
        await queries.worker_seen(self.conn, state="busy", job_id=job_id, id=worker_id)

    async def holds(self, attempt: Attempt) -> bool:
        job = await self.row(attempt.job_id)
        return (job.state, job.lease_epoch, job.attempt_id) == (State.RUNNING, attempt.epoch, attempt.attempt_id)

    async def write(self, call: Callable[..., Awaitable[Any]], attempt: Attempt, *arguments: Any) -> Any:
        """A worker's write: it is done for the attempt that holds the job, and refused to every other."""
        before = await self.row(attempt.job_id)
        holds = await self.holds(attempt)
        try:
            answer = await call(self.conn, attempt, *arguments)
        except LeaseLostError:
            assert not holds, "refused to the attempt that holds the job"
            assert await self.row(attempt.job_id) == before
            return None
        except CancelPendingError:
            assert holds
            assert before.cancel_requested_at is not None
            return None
        if not holds:
            repeated = before.state == State.COMPLETED and before.attempt_id == attempt.attempt_id
            assert repeated, "done for an attempt that does not hold the job"
            assert await self.row(attempt.job_id) == before, "a repeated completion changes nothing"
        return answer

    async def renew(self, attempt: Attempt) -> None:
        before = await self.row(attempt.job_id)
        reply = await self.write(attempts.renew, attempt, TTL_S)
        if reply is not None:
            assert (reply.cancel, reply.stop) == (
                before.cancel_requested_at is not None,
                before.stop_requested_at is not None,
            )
            assert before.lease_owner is not None
            await self._at_work(before.lease_owner, attempt.job_id)

    async def report(self, attempt: Attempt, new: int, again: int, kind: str) -> None:
        """A batch of `new` events behind `again` ones that were sent before."""
        sent = self.numbers.get(attempt.attempt_id, 0)
        batch = [
            WorkerEvent(number, kind, {"step": 1 + number // 2})
            for number in range(max(1, sent - again + 1), sent + new + 1)
        ]
        added = await self.write(attempts.append_events, attempt, batch)
        if added is not None:
            assert added == new, "each event once"
            self.numbers[attempt.attempt_id] = sent + new

    async def checkpoint(self, attempt: Attempt, step: int) -> None:
        checkpoint = self.world.new_checkpoint(attempt, step)
        self.bucket.put(checkpoint.s3_prefix, checkpoint.manifest)
        await self.write(checkpoints.commit_checkpoint, attempt, checkpoint)

    async def lose_checkpoint(self, attempt: Attempt) -> None:
        readable = await checkpoints.readable_checkpoints(self.conn, attempt.job_id)
        if readable:
            await self.write(checkpoints.mark_checkpoint_lost, attempt, readable[0], "damaged")

    async def complete(self, attempt: Attempt) -> None:
        kind = (await self.row(attempt.job_id)).type
        if kind == "ingest":
            shard = self.world.new_shard(attempt)
            self.bucket.objects[shard.s3_key] = SHA
            await self.write(attempts.complete_ingest, attempt, [shard], 3, 1)
        elif kind == "sample":
            await self.write(complete_sample, attempt, [FileEntry("pool", 1, SHA)])
        else:
            model = self.world.new_model(attempt)
            self.bucket.put(model.s3_prefix, MANIFEST)
            await self.write(attempts.complete_training, attempt, model, {})

    async def fail(self, attempt: Attempt) -> None:
        await self.write(attempts.fail, attempt, "nonfinite_loss", "The loss is not a number.")

    async def crash(self, attempt: Attempt) -> None:
        before = await self.row(attempt.job_id)
        after = await self.write(attempts.crash, attempt, "trainer_crashed", "exit code 1")
        if after is not None and before.cancel_requested_at is None and before.stop_requested_at is None:
            spent = before.crashes + 1 >= CRASH_BUDGET
            assert after.state == (State.FAILED if spent else State.QUEUED)
            assert spent or after.retries == before.retries + 1

    async def release(self, attempt: Attempt) -> None:
        before = await self.row(attempt.job_id)
        after = await self.write(attempts.release, attempt)
        if after is not None:
            assert after.retries == before.retries, "a drain is no interruption that counts"
            pending = (before.cancel_requested_at is not None, before.stop_requested_at is not None)
            assert after.state == (State.CANCELLED if pending[0] else State.STOPPED if pending[1] else State.QUEUED)
