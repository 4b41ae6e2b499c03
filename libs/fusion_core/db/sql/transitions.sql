-- Every statement that changes a job's state. A worker's statements are fenced by state, lease epoch and attempt id:
-- no row back means the lease is lost. The pairs after each name are compared with fusion_core.states by a test.

-- name: insert_job(account_id, type, idempotency_key, request_sha256, spec_version, spec, base_model_id, source_model_id, dataset_id, price_version, estimate, pool, requirements, priority, gpu_class, gpu_count, labels, description, deadline_s)^
-- new -> queued. No row: the account has used this idempotency key before, or the base is being sampled already.
insert into jobs (
    account_id, type, idempotency_key, request_sha256, spec_version, spec, base_model_id, source_model_id, dataset_id,
    price_version, estimate, reserved_microusd, pool, requirements, priority, gpu_class, gpu_count, labels,
    description,
    deadline_at
) values (
    :account_id, :type, :idempotency_key, :request_sha256, :spec_version, :spec, :base_model_id, :source_model_id,
    :dataset_id, :price_version, :estimate, estimate_total(:estimate), :pool, :requirements, :priority, :gpu_class,
    :gpu_count, :labels, :description, now() + make_interval(secs => :deadline_s)
)
on conflict do nothing
returning *;

-- name: claim_job(worker_id, attempt_id, ttl_s, topic, internal_topic, job_id, epoch, pool, spec_version, capabilities)^
-- queued -> running. Takes one named job at the expected epoch, or, where none is named, the first of those served next
-- that no other claim has its hands on; with its event. The account's count is read again under its lock: of two claims
-- at once only one is the last that fits.
with free as (
    select n.id, n.account_id from lock_claimable(:job_id, :epoch, :pool, :spec_version, :capabilities) n
    where not exists (select from workers w where w.id = :worker_id and w.drain_requested_at is not null)
), allowed as (
    select free.id from free join accounts_running r on r.account_id = free.account_id
    where r.jobs < (select a.max_running_jobs from accounts a where a.id = free.account_id)
    for update of r
), claimed as (
    update jobs set
        state = 'running', lease_owner = :worker_id, lease_epoch = lease_epoch + 1, attempt_id = :attempt_id,
        lease_expires_at = now() + make_interval(secs => :ttl_s), started_at = coalesce(started_at, now()),
        last_interruption = null, phase = null, attempt_events = 0, event_seq = event_seq + 1
    from allowed where jobs.id = allowed.id
    returning jobs.*
), event as (
    insert into job_events (job_id, seq, type, data)
    select id, event_seq, 'claimed', jsonb_build_object('attempt', lease_epoch, 'resume_step', last_checkpoint_step)
    from claimed
), message as (
    insert into outbox (job_id, seq, topic)
    select id, event_seq, case when internal then :internal_topic else :topic end from claimed
)
select * from claimed;

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

-- name: complete_training(name, params, config, s3_prefix, manifest, result, cost, topic, amount_microusd, line_items, tokens, job_id, epoch, attempt_id)^
-- running -> completed. Refused while a cancel is pending. With it, in one statement: the model, the final event, the
-- webhook's row and the ledger's line. Rows that refer to each other are checked at the statement's end.
with held as (
    select * from jobs
    where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
        and cancel_requested_at is null
    for update
), model as (
    insert into models (
        account_id, job_id, name, version, params, base_model_id, parent_model_id, config, s3_prefix, manifest
    )
    select
        held.account_id, held.id, :name, next_model_version(held.account_id, :name), :params,
        coalesce(held.base_model_id, parent.base_model_id), held.source_model_id, :config, :s3_prefix, :manifest
    from held left join models parent on parent.id = held.source_model_id
    returning id
), completed as (
    update jobs set
        state = 'completed', lease_owner = null, lease_expires_at = null, phase = null, finished_at = now(),
        output_model_id = model.id, result = :result, event_seq = event_seq + 1
    from model
    where jobs.id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
    returning jobs.*
), event as (
    insert into job_events (job_id, seq, type, data)
    select id, event_seq, 'completed', :cost::jsonb || jsonb_build_object('output_model_id', output_model_id)
    from completed
), hook as (
    insert into outbox (job_id, seq, topic) select id, event_seq, :topic from completed
), billed as (
    insert into ledger (account_id, job_id, amount_microusd, line_items, tokens, price_version, gpu_seconds)
    select account_id, id, :amount_microusd, :line_items, :tokens, price_version, gpu_seconds from completed
)
select * from completed;

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

-- name: requeue_interrupted_job(interruption, outage, loss_limit, job_id, epoch, attempt_id)^
-- running -> queued. Counts a retry; the wait before the next claim grows with interruptions without progress. A crash
-- in an outage of S3 is nobody's: it spends no budget, and waits a constant time.
update jobs set
    state = 'queued', lease_owner = null, lease_expires_at = null, phase = null,
    last_interruption = :interruption, retries = retries + 1, rung_at = null,
    crashes = crashes + (:interruption = 'crash' and not :outage)::int, losses = losses + (:interruption = 'lost')::int,
    not_before = now() + make_interval(
        secs => case when :outage then 10 else least(300, 5 * (power(2, least(crashes + losses, 10)) - 1)) end),
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
-- stopped -> queued. Clears the pending stop; the time it was stopped does not count against its deadline.
update jobs set
    state = 'queued', stop_requested_at = null, stopped_at = null, last_interruption = null, not_before = now(),
    crashes = 0, losses = 0, quarantined_at = null, rung_at = null,
    deadline_at = deadline_at + (now() - stopped_at)
where id = :job_id and state = 'stopped'
returning *;

-- name: retry_queued_job(job_id)!
-- queued -> queued. The operator's wish: a quarantine and the wait after interruptions end, and their counts.
update jobs set quarantined_at = null, crashes = 0, losses = 0, not_before = least(not_before, now()), rung_at = null
where id = :job_id and state = 'queued';

-- name: fail_idle_job(error, job_id)^
-- queued -> failed, stopped -> failed
update jobs set
    state = 'failed', stopped_at = null, quarantined_at = null, finished_at = now(), error = :error
where id = :job_id and state in ('queued', 'stopped')
returning *;
