"""Random interleavings of every operation against the real SQL; the invariants of the design hold after each step."""

import asyncio
import contextlib
from typing import Any
from uuid import uuid4

import pytest
from fusion_core.db import attempts, jobs, sweep
from fusion_core.db.attempts import Attempt, CancelPendingError, LeaseLostError, WorkerEvent
from fusion_core.db.endings import frozen_estimate
from fusion_core.states import TERMINAL
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)


class Fleet(RuleBasedStateMachine):
    """One job, its customer, the sweeps, and every attempt that ever held it, zombies included."""

    world: Any
    runner: asyncio.Runner
    held = Bundle("held")  # attempts, current or stale

    def do(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @initialize()
    def submit(self) -> None:
        self.job = self.do(self.world.train())
        self.steps = 0
        self.terminal: Any = None
        self.last_checkpoint = 0

    async def _with(self, call: Any, *arguments: Any) -> Any:
        async with self.world.pool.acquire() as conn:
            with contextlib.suppress(LeaseLostError, CancelPendingError):
                return await call(conn, *arguments)

    @rule(target=held)
    def claim(self) -> Any:
        self.do(self.world.be_due(self.job.id))
        job = self.do(self.world.job(self.job.id))
        attempt_id = uuid4()
        claimed = self.do(self._with(attempts.claim, self.world.claimer, job.id, job.lease_epoch, attempt_id, 20))
        return multiple(Attempt(job.id, claimed.lease_epoch, attempt_id)) if claimed else multiple()

    @rule(attempt=held)
    def renew(self, attempt: Attempt) -> None:
        self.do(self._with(attempts.renew, attempt, 20))

    @rule(attempt=held, number=st.integers(1, 5), kind=st.sampled_from(["phase", "grown", "metrics"]))
    def report(self, attempt: Attempt, number: int, kind: str) -> None:
        self.do(self._with(attempts.append_events, attempt, [WorkerEvent(number, kind, {"step": number})]))

    @rule(attempt=held, step=st.integers(1, 20))
    def checkpoint(self, attempt: Attempt, step: int) -> None:
        self.do(self._with(attempts.commit_checkpoint, attempt, self.world.new_checkpoint(attempt, step)))

    @rule(attempt=held)
    def complete(self, attempt: Attempt) -> None:
        self.do(self._with(attempts.complete_training, attempt, self.world.new_model(attempt), {}))

    @rule(attempt=held)
    def fail(self, attempt: Attempt) -> None:
        self.do(self._with(attempts.fail, attempt, "nonfinite_loss", "no"))

    @rule(attempt=held)
    def crash(self, attempt: Attempt) -> None:
        self.do(self._with(attempts.crash, attempt, "trainer_crashed", "no"))

    @rule(attempt=held)
    def drain(self, attempt: Attempt) -> None:
        self.do(self._with(attempts.release, attempt))

    @rule()
    def lose_worker(self) -> None:
        job = self.do(self.world.job(self.job.id))
        if job.state == "running":
            self.do(self.world.expire(job.id))
            self.do(self._with(sweep.reclaim_expired))

    @rule(call=st.sampled_from([jobs.cancel_job, jobs.stop_job, jobs.resume_job]))
    def customer(self, call: Any) -> None:
        assert self.do(self._with(call, self.job.account_id, self.job.id)) is not None

    @rule()
    def stranger(self) -> None:
        assert self.do(self._with(jobs.cancel_job, uuid4(), self.job.id)) is None

    @invariant()
    def what_must_always_hold(self) -> None:
        if not hasattr(self, "job"):
            return
        self.do(self._check())

    async def _check(self) -> None:
        job = await self.world.job(self.job.id)
        models = await self.world.pool.fetch("select id from models where job_id = $1", job.id)
        ledger = await self.world.ledger(job.id)
        await self.world.event_types(job.id)  # no gaps, no repeats
        assert len(models) == (1 if job.state == "completed" else 0)
        assert [model["id"] for model in models] == ([job.output_model_id] if models else [])
        assert len(ledger) == (1 if job.state in TERMINAL else 0)
        if job.state == "completed":
            assert ledger == [frozen_estimate(job).total_microusd]
            assert job.cancel_requested_at is None
        if job.state == "failed":
            assert ledger == [0]
        if ledger:
            assert ledger[0] <= frozen_estimate(job).total_microusd
        assert job.last_checkpoint_step >= self.last_checkpoint
        self.last_checkpoint = job.last_checkpoint_step
        if self.last_checkpoint:
            newest = (await attempts.readable_checkpoints(self.world.pool, job.id))[0]
            assert newest.step == job.last_checkpoint_step
        if self.terminal is not None:
            assert job == self.terminal, "a terminal job never changes"
        if job.state in TERMINAL:
            self.terminal = job


@pytest.mark.timeout(240)
def test_random_interleavings_keep_every_invariant(world_in_own_loop: Any) -> None:
    world, runner = world_in_own_loop

    class Bound(Fleet):
        pass

    Bound.world, Bound.runner = world, runner
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis leaves it untyped
        Bound,
        settings=settings(
            max_examples=250, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
