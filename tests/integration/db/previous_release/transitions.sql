-- Every statement that changes a job's state. A worker's statements are fenced by state, lease epoch and attempt id:
-- no row back means the lease is lost. The pairs after each name are compared with fusion_core.states by a test.

-- name: insert_job(account_id, type, idempotency_key, request_sha256, spec_version, spec, base_model_id, source_model_id, dataset_id, price_version, estimate, pool, requirements, priority, labels, description)^
-- new -> queued. No row: the account has used this idempotency key before, or the base is being sampled already.
insert into jobs (
    account_id, type, idempotency_key, request_sha256, spec_version, spec, base_model_id, source_model_id, dataset_id,
    price_version, estimate, pool, requirements, priority, labels, description
) values (
    :account_id, :type, :idempotency_key, :request_sha256, :spec_version, :spec, :base_model_id, :source_model_id,
    :dataset_id, :price_version, :estimate, :pool, :requirements, :priority, :labels, :description
)
on conflict do nothing
returning *;

-- name: claim_job(worker_id, attempt_id, ttl_s, job_id, epoch, pool, spec_version, capabilities)^
-- queued -> running. Takes one named job at the expected epoch.
update jobs set
    state = 'running', lease_owner = :worker_id, lease_epoch = lease_epoch + 1, attempt_id = :attempt_id,
    lease_expires_at = now() + make_interval(secs => :ttl_s), started_at = coalesce(started_at, now()),
    last_interruption = null, phase = null, attempt_events = 0
where id = (
    select c.id from claimable c
    where c.id = :job_id and c.lease_epoch = :epoch
        and c.pool = :pool and c.spec_version <= :spec_version and c.requirements <@ :capabilities
    for update of c
)
returning *;

-- name: renew_lease(ttl_s, job_id, epoch, attempt_id)^
-- running -> running. An expired lease is renewed too, as long as nobody has taken the job.
update jobs set lease_expires_at = now() + make_interval(secs => :ttl_s)
where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
returning cancel_requested_at is not null as cancel, stop_requested_at is not null as stop;

-- name: request_cancel(job_id)!
-- running -> running. The worker learns of it in the reply to its next heartbeat.
update jobs set cancel_requested_at = coalesce(cancel_requested_at, now()) where id = :job_id and state = 'running';

-- name: request_stop(job_id)!
-- running -> running
update jobs set stop_requested_at = coalesce(stop_requested_at, now()) where id = :job_id and state = 'running';

-- name: complete_job(output_model_id, result, job_id, epoch, attempt_id)^
-- running -> completed. Refused while a cancel is pending.
update jobs set
    state = 'completed', lease_owner = null, lease_expires_at = null, phase = null, finished_at = now(),
    output_model_id = :output_model_id, result = :result
where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
    and cancel_requested_at is null
returning *;

-- name: fail_job(error, job_id, epoch, attempt_id)^
-- running -> failed
update jobs set
    state = 'failed', lease_owner = null, lease_expires_at = null, phase = null, finished_at = now(), error = :error
where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
returning *;

-- name: cancel_running_job(job_id, epoch, attempt_id)^
-- running -> cancelled. Only where a cancel is pending.
update jobs set
    state = 'cancelled', lease_owner = null, lease_expires_at = null, phase = null, finished_at = now()
where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
    and cancel_requested_at is not null
returning *;

-- name: stop_running_job(job_id, epoch, attempt_id)^
-- running -> stopped. Only where a stop is pending and no cancel is.
update jobs set
    state = 'stopped', lease_owner = null, lease_expires_at = null, phase = null, stopped_at = now()
where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
    and cancel_requested_at is null and stop_requested_at is not null
returning *;

-- name: requeue_interrupted_job(interruption, loss_limit, job_id, epoch, attempt_id)^
-- running -> queued. Counts a retry; the wait before the next claim grows with interruptions without progress.
update jobs set
    state = 'queued', lease_owner = null, lease_expires_at = null, phase = null,
    last_interruption = :interruption, retries = retries + 1, rung_at = null,
    crashes = crashes + (:interruption = 'crash')::int, losses = losses + (:interruption = 'lost')::int,
    not_before = now() + make_interval(secs => least(300, 5 * (power(2, least(crashes + losses, 10)) - 1))),
    quarantined_at = case when :interruption = 'lost' and losses + 1 >= :loss_limit then now() end
where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
    and cancel_requested_at is null and stop_requested_at is null
returning *;

-- name: release_job(job_id, epoch, attempt_id)^
-- running -> queued. A drain: claimable at once, no retry counted.
update jobs set
    state = 'queued', lease_owner = null, lease_expires_at = null, phase = null,
    last_interruption = 'drain', not_before = now(), rung_at = null
where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
    and cancel_requested_at is null and stop_requested_at is null
returning *;

-- name: cancel_idle_job(job_id)^
-- queued -> cancelled, stopped -> cancelled
update jobs set
    state = 'cancelled', cancel_requested_at = coalesce(cancel_requested_at, now()), stopped_at = null,
    finished_at = now()
where id = :job_id and state in ('queued', 'stopped')
returning *;

-- name: stop_queued_job(job_id)^
-- queued -> stopped
update jobs set state = 'stopped', stop_requested_at = now(), stopped_at = now(), last_interruption = null
where id = :job_id and state = 'queued'
returning *;

-- name: resume_job(job_id)^
-- stopped -> queued. Clears the pending stop.
update jobs set
    state = 'queued', stop_requested_at = null, stopped_at = null, last_interruption = null, not_before = now(),
    crashes = 0, losses = 0, quarantined_at = null, rung_at = null
where id = :job_id and state = 'stopped'
returning *;
