-- What a customer reads. Every query names the account.

-- name: get_job(account_id, job_id)^
select * from jobs where account_id = :account_id and id = :job_id and not internal;

-- name: get_job_by_key(account_id, idempotency_key)^
select * from jobs where account_id = :account_id and idempotency_key = :idempotency_key;

-- name: list_jobs(account_id, after, limit)
-- A first page starts above every id, so that one plan serves every page.
select * from jobs
where account_id = :account_id and not internal
    and id < coalesce(:after::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
order by id desc limit :limit;

-- name: find_jobs(account_id, type, state, phases, interrupted, start_model_id, dataset_id, labels, after, limit)
-- Null filters nothing. `labels` are elements of account_labels, all of which a job must have.
select * from jobs
where account_id = :account_id and not internal
    and id < coalesce(:after::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
    and (:type::text is null or type = :type)
    and (:state::text is null or (
        state = :state and coalesce(phase, '') = any(:phases::text[])
        and (last_interruption is not null) = any(:interrupted::boolean[])
    ))
    and (:start_model_id::uuid is null or start_model_id = :start_model_id)
    and (:dataset_id::uuid is null or dataset_id = :dataset_id)
    and (:labels::text[] is null or (labels <> '{}' and account_labels(account_id, labels) @> :labels))
order by id desc limit :limit;

-- name: list_events(job_id, after, limit)
select e.seq, e.type, e.data, e.created_at from job_events e
where e.job_id = :job_id and e.seq > :after order by e.seq limit :limit;

-- name: list_metrics(job_id, since_step, limit)
select point from job_metrics where job_id = :job_id and step > :since_step order by step limit :limit;

-- name: latest_metric(job_id)^
select point from job_metrics where job_id = :job_id order by step desc limit 1;

-- name: latest_metric_step(job_id)$
select coalesce(max(step), 0) from job_metrics where job_id = :job_id;

-- name: list_checkpoints(job_id, after, limit)
select id, step, turn_end, state, created_at,
    (select coalesce(sum((file ->> 'size')::bigint), 0)::bigint from jsonb_array_elements(manifest -> 'files') file)
        as bytes
from checkpoints
where job_id = :job_id and id < coalesce(:after::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
order by id desc limit :limit;

-- name: get_checkpoint(job_id, checkpoint_id)^
select id, step, state from checkpoints where job_id = :job_id and id = :checkpoint_id;

-- name: start_from_checkpoint(job_id, checkpoint_id)^
-- A new job begins where another's checkpoint ends. Epoch 0 is before its own first attempt.
with source as (
    select * from checkpoints where id = :checkpoint_id and state = 'ok'
), copied as (
    insert into checkpoints
        (job_id, step, epoch, attempt_id, format_version, turn_end, s3_prefix, manifest, stored_by)
    select :job_id, step, 0, attempt_id, format_version, turn_end, s3_prefix, manifest, coalesce(stored_by, job_id)
    from source
)
update jobs set start_step = source.step, last_checkpoint_step = source.step, resumed_from = source.job_id
from source where jobs.id = :job_id
returning jobs.*;
