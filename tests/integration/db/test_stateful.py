"""Random interleavings of every operation of the service against the real SQL, under a clock that the test turns.

After every step: the eight invariants of `invariants.py`, and what the step itself says must come of it (`fleet.py`).
FUSION_INTERLEAVINGS=10000 runs that many, in chunks with a database and a seed each; a failure prints its seed and the
shortest program of steps that shows it.
"""

import asyncio
import os
from typing import Any
from uuid import UUID

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
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

from tests.integration.db.fleet import Fleet

INTERLEAVINGS = int(os.environ.get("FUSION_INTERLEAVINGS", "150"))
CHUNK = 200  # of one database
STEPS = 20
PLACES = st.integers(0, 9)
REPORTS = ["phase", "grown", "metrics"]
KINDS = ["train", "train", "finetune", "contract", "ingest"]
SECONDS = [1, 5, 11, 21, 300, 2000, 90_000]
DAYS = [8, 31, 400]


def some(made: Any) -> Any:
    """For a bundle: what was made, if anything was."""
    return multiple() if made is None else made


class Interleaving(RuleBasedStateMachine):
    """Jobs of every type, of two accounts; rings that are fresh or stale."""

    world: Any
    runner: asyncio.Runner
    jobs = Bundle("jobs")
    rings = Bundle("rings")

    def do(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def at_work(self, place: int, step: Any, *arguments: Any) -> None:
        """A worker's step by an attempt: one that has its job where `place` is low, any that ever was, and forged ones,
        where it is high. Nothing where no job may be claimed."""
        attempt = self.do(self.fleet.attempt(place))
        if attempt is not None:
            self.do(step(attempt, *arguments))

    @initialize(target=jobs)
    def begin(self) -> Any:
        self.fleet = Fleet(self.world)
        self.do(self.fleet.begin())
        return self.do(self.fleet.submit("train", 0, "first"))

    def teardown(self) -> None:
        if hasattr(self, "fleet"):
            try:
                self.do(self.end())
            finally:
                self.do(self.fleet.leave())

    async def end(self) -> None:
        await self.fleet.settle()
        assert [str(broken) for broken in await self.fleet.broken()] == []

    # -- customers

    @rule(target=jobs, kind=st.sampled_from(KINDS), who=st.integers(0, 1), key=st.sampled_from("abcdef"))
    def submit(self, kind: str, who: int, key: str) -> Any:
        return some(self.do(self.fleet.submit(kind, who, key)))

    @rule(target=jobs)
    def sample(self) -> Any:
        return some(self.do(self.fleet.sample()))

    @rule(job=jobs)
    def cancel(self, job: UUID) -> None:
        self.do(self.fleet.cancel(job))

    @rule(job=jobs)
    def stop(self, job: UUID) -> None:
        self.do(self.fleet.stop(job))

    @rule(job=jobs)
    def resume(self, job: UUID) -> None:
        self.do(self.fleet.resume(job))

    @rule(target=jobs, job=jobs, place=st.integers(0, 2))
    def resume_from(self, job: UUID, place: int) -> Any:
        return some(self.do(self.fleet.resume_from(job, place)))

    @rule(job=jobs)
    def stranger(self, job: UUID) -> None:
        self.do(self.fleet.stranger(job))

    # -- workers

    @rule(worker=st.integers(0, 2))
    def claim_next(self, worker: int) -> None:
        self.do(self.fleet.claim_next(worker))

    @rule(worker=st.integers(0, 2), ring=rings)
    def claim(self, worker: int, ring: tuple[UUID, int]) -> None:
        self.do(self.fleet.claim(worker, *ring))

    @rule(place=PLACES)
    def renew(self, place: int) -> None:
        self.at_work(place, self.fleet.renew)

    @rule(place=PLACES, new=st.integers(0, 3), again=st.integers(0, 3), kind=st.sampled_from(REPORTS))
    def report(self, place: int, new: int, again: int, kind: str) -> None:
        self.at_work(place, self.fleet.report, new, again, kind)

    @rule(place=PLACES, step=st.integers(1, 20))
    def checkpoint(self, place: int, step: int) -> None:
        self.at_work(place, self.fleet.checkpoint, step)

    @rule(place=PLACES)
    def lose_checkpoint(self, place: int) -> None:
        self.at_work(place, self.fleet.lose_checkpoint)

    @rule(place=PLACES)
    def complete(self, place: int) -> None:
        self.at_work(place, self.fleet.complete)

    @rule(place=PLACES)
    def fail(self, place: int) -> None:
        self.at_work(place, self.fleet.fail)

    @rule(place=PLACES, times=st.integers(1, 3))
    def crash(self, place: int, times: int) -> None:
        for _ in range(times):
            self.at_work(place, self.fleet.crash)
            self.do(self.fleet.clock.advance(301))

    @rule(place=PLACES)
    def release(self, place: int) -> None:
        self.at_work(place, self.fleet.release)

    # -- the platform

    @rule(seconds=st.sampled_from(SECONDS))
    def time_passes(self, seconds: int) -> None:
        self.do(self.fleet.clock.advance(seconds))

    @rule(days=st.sampled_from(DAYS))
    def days_pass(self, days: int) -> None:
        self.do(self.fleet.clock.advance(days * 86_400))
        self.do(self.fleet.expire_stopped())

    @rule()
    def sweep(self) -> None:
        self.do(self.fleet.sweep())

    @rule(times=st.integers(1, 6))
    def lose_workers(self, times: int) -> None:
        """Nobody renews for more than a lease while the sweeps go on; and again as soon as the job may be claimed."""
        for _ in range(times):
            self.do(self.fleet.claim_next(0))
            for _ in range(5):
                self.do(self.fleet.clock.advance(9))
                self.do(self.fleet.sweep())
            self.do(self.fleet.clock.advance(301))

    @rule(place=PLACES)
    def reclaim(self, place: int) -> None:
        self.at_work(place, self.fleet.reclaim)

    @rule(target=rings)
    def ring(self) -> Any:
        return some(self.do(self.fleet.ring()))

    @rule()
    def prune(self) -> None:
        self.do(self.fleet.prune())

    @rule()
    def retain(self) -> None:
        self.do(self.fleet.retain())

    @rule()
    def fan_out(self) -> None:
        self.do(self.fleet.fan_out())

    @rule(outcome=st.sampled_from(["delivered", "retry", "failed", "gone"]))
    def deliver(self, outcome: str) -> None:
        self.do(self.fleet.deliver(outcome))

    # -- operators

    @rule(account=st.sampled_from([None, 0, 1]), pause=st.booleans())
    def pause(self, account: int | None, pause: bool) -> None:
        self.do(self.fleet.pause(account, pause))

    @rule(cordon=st.booleans())
    def cordon(self, cordon: bool) -> None:
        self.do(self.fleet.cordon(cordon))

    @rule(worker=st.integers(0, 2), drain=st.booleans())
    def drain_worker(self, worker: int, drain: bool) -> None:
        self.do(self.fleet.drain_worker(worker, drain))

    @rule(job=jobs, priority=st.integers(-1, 1))
    def prioritise(self, job: UUID, priority: int) -> None:
        self.do(self.fleet.prioritise(job, priority))

    @rule(job=jobs)
    def requeue(self, job: UUID) -> None:
        self.do(self.fleet.requeue(job))

    @rule(job=jobs)
    def fail_job(self, job: UUID) -> None:
        self.do(self.fleet.fail_job(job))

    @rule(job=jobs, force=st.booleans())
    def take_job(self, job: UUID, force: bool) -> None:
        self.do(self.fleet.take_job(job, force))

    @rule()
    def end_overdue(self) -> None:
        self.do(self.fleet.end_overdue())

    @invariant()
    def what_must_always_hold(self) -> None:
        if hasattr(self, "fleet"):
            assert [str(broken) for broken in self.do(self.fleet.broken())] == []


def interleave(world: Any, runner: asyncio.Runner, *, seed: int, examples: int, phases: Any = tuple(Phase)) -> None:
    """Run so many interleavings. Raises what the first broken step raised, after shrinking it."""

    class Bound(Interleaving):
        pass

    Bound.world, Bound.runner = world, runner
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis leaves it untyped
        hypothesis.seed(seed)(Bound),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=phases,
            report_multiple_bugs=False,
            database=None,
            print_blob=True,
        ),
    )


@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(-(-INTERLEAVINGS // CHUNK)))
def test_random_interleavings_keep_every_invariant(world_in_own_loop: Any, seed: int) -> None:
    interleave(*world_in_own_loop, seed=seed, examples=min(CHUNK, INTERLEAVINGS - seed * CHUNK))
