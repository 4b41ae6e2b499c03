"""What services like this one are known to have got wrong, where no test of another file would notice it here."""

from typing import Any
from uuid import uuid4

from fusion_core.db import attempts, jobs, sweep
from fusion_core.states import Status


async def test_a_job_of_many_hours_is_never_rescued_for_its_age(world: Any) -> None:
    """River issue 682: what runs long was taken for stuck, and run again."""
    attempt = await world.running(ttl_s=20)
    async with world.pool.acquire() as conn:
        for _ in range(60):
            await world.clock.advance(19)
            await attempts.renew(conn, attempt, 20)
            await world.pool.execute("update jobs set started_at = started_at - interval '1 hour'")
            assert await sweep.reclaim_expired(conn) == []
    job = await world.job(attempt.job_id)
    assert (job.state, job.retries, job.lease_epoch) == ("running", 0, 1)


async def test_a_reaper_that_read_before_the_completion_brings_nothing_back(world: Any) -> None:
    """River issue 1302, skypilot pull 10061: a completed job was put back by a sweep that had read it running."""
    attempt = await world.running(ttl_s=20)
    await world.clock.advance(30)
    async with world.pool.acquire() as reaper, world.pool.acquire() as worker:
        read = await reaper.fetchrow("select id, lease_epoch from jobs where lease_expires_at < now()")
        completed = await attempts.complete_training(worker, attempt, world.new_model(attempt), {})
        assert await sweep.reclaim(reaper, read["id"], read["lease_epoch"]) is None
    after = await world.job(attempt.job_id)
    assert (after.state, after.attempt_id, after.event_seq) == ("completed", attempt.attempt_id, completed.event_seq)


async def test_losing_contact_often_costs_a_healthy_job_nothing(world: Any) -> None:
    """Skypilot issue 10155: 25 status time-outs were 24 recoveries. Here a lease that is renewed late is still held."""
    attempt = await world.running(ttl_s=20)
    async with world.pool.acquire() as conn:
        for _ in range(25):
            await world.clock.advance(60)
            await attempts.renew(conn, attempt, 20)
    job = await world.job(attempt.job_id)
    assert (job.state, job.retries, job.losses) == ("running", 0, 0)


async def test_too_late_cancelled_and_failed_are_three_things(world: Any) -> None:
    """Yuxi issue 884: what ran out of time was shown as cancelled by its customer."""
    late, cancelled, failed = [await world.running() for _ in range(3)]
    async with world.pool.acquire() as conn:
        await jobs.cancel_job(conn, (await world.job(cancelled.job_id)).account_id, cancelled.job_id)
        await attempts.obey(conn, cancelled)
        await attempts.fail(conn, failed, "nonfinite_loss", "The loss is not a number.")
        await world.pool.execute("update jobs set deadline_at = now() where id = $1", late.job_id)
        await world.clock.advance(1)
        await sweep.end_overdue(conn)
    ended = [await world.job(attempt.job_id) for attempt in (late, cancelled, failed)]
    assert [job.status for job in ended] == [Status.FAILED, Status.CANCELLED, Status.FAILED]
    assert [job.error and job.error["code"] for job in ended] == ["deadline_exceeded", None, "nonfinite_loss"]


async def test_a_stopped_job_that_goes_on_is_the_same_job_and_shows_it(world: Any) -> None:
    """Kubeflow sdk issue 803: a resumed job was shown as created; elsewhere a restart changes the id."""
    attempt = await world.running()
    account_id = (await world.job(attempt.job_id)).account_id
    async with world.pool.acquire() as conn:
        await jobs.stop_job(conn, account_id, attempt.job_id)
        assert (await attempts.obey(conn, attempt)).status == Status.STOPPED
        resumed = await jobs.resume_job(conn, account_id, attempt.job_id)
        assert resumed is not None
        assert (resumed.id, resumed.status) == (attempt.job_id, Status.QUEUED)
        again = await attempts.claim(conn, world.claimer, resumed.id, resumed.lease_epoch, uuid4(), 20)
        assert again is not None
        assert again.status == Status.PROVISIONING
