-- What a customer reads. Every query names the account.

-- name: get_job(account_id, job_id)^
select * from jobs where account_id = :account_id and id = :job_id and not internal;

-- name: get_job_by_key(account_id, idempotency_key)^
select * from jobs where account_id = :account_id and idempotency_key = :idempotency_key;

-- name: list_jobs(account_id, after, limit)
-- A first page starts above every id, so that one plan serves every page.
select
    id, account_id, type, base_model_id, source_model_id, dataset_id, labels, description, state, phase,
    last_interruption, retries, last_checkpoint_step, output_model_id, created_at, started_at, finished_at
from jobs
where account_id = :account_id and not internal
    and id < coalesce(:after::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
order by id desc limit :limit;

-- name: find_jobs(account_id, type, state, phases, interrupted, start_model_id, dataset_id, labels, after, limit)
-- Null filters nothing. `labels` are elements of account_labels, all of which a job must have.
select
    id, account_id, type, base_model_id, source_model_id, dataset_id, labels, description, state, phase,
    last_interruption, retries, last_checkpoint_step, output_model_id, created_at, started_at, finished_at
from jobs
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

-- name: keep_traceparent(job_id, traceparent)!
update jobs set traceparent = :traceparent where id = :job_id;

-- name: list_events(job_id, after, limit)
select e.seq, e.type, e.data, e.created_at from job_events e
where e.job_id = :job_id and e.seq > :after order by e.seq limit :limit;

-- name: event_seqs(job_ids)
-- For a process that follows these jobs; it has checked whose they are.
select id, event_seq from jobs where id = any(:job_ids::uuid[]);

-- name: list_metrics(job_id, since_step, limit)
select point from job_metrics where job_id = :job_id and step > :since_step order by step limit :limit;

-- name: get_job_with_progress(account_id, job_id)^
-- The newest point of the current attempt: what an attempt that was lost computed past its checkpoint counts no more.
select j.*, m.point from jobs j
left join lateral (
    select point from job_metrics where job_id = j.id and epoch = j.lease_epoch order by step desc limit 1
) m on true
where j.account_id = :account_id and j.id = :job_id and not j.internal;

-- name: gpu_pools(limit)
-- The smallest first; of equals one that takes more work.
select name, gpu_class, gpu_count from pools where gpu_count > 0
order by gpu_count, cordoned_at is not null, name limit :limit;

-- name: queue_of_job(most, recent, job_id)^
-- Who is served before it, counted to `most`, in the order of serving_order, whose terms these are: jobs of lines that
-- are open or its own, as if all had waited long enough. The pool's workers; how long its last jobs took; why it waits.
select
    (
        select count(*) from (
            select from queue_lines(j.pool) line
            cross join lateral (
                select account_running from open_line(j.pool, line.account_id)
                union all
                select mine.running where line.account_id = j.account_id limit 1
            ) open
            cross join lateral (
                select head.*, row_number() over (order by head.created_at, head.id) as turn from (
                    select o.created_at, o.id from jobs o
                    where o.finished_at is null and o.state = 'queued' and o.quarantined_at is null
                        and o.pool = j.pool and (o.priority, o.account_id) >= (line.priority, line.account_id)
                        and (o.priority, o.account_id) <= (line.priority, line.account_id)
                    order by o.priority, o.account_id, o.created_at, o.id
                    limit case when line.priority > j.priority then :most
                        else greatest(0, mine.running + mine.turn - open.account_running) end
                ) head
            ) other
            where line.priority >= j.priority and (
                line.priority > j.priority
                or (open.account_running + other.turn, other.created_at, other.id)
                    < (mine.running + mine.turn, j.created_at, j.id)
            )
            limit :most
        ) before
    ) as ahead,
    w.idle, w.workers, r.mean_s, greatest(j.not_before, now()) as earliest,
    j.not_before, j.created_at, waits_for(j) as waits_for
from jobs j
cross join lateral (
    select r.jobs as running, 1 + (
        select count(*) from (
            select from jobs o
            where o.finished_at is null and o.state = 'queued' and o.quarantined_at is null and o.pool = j.pool
                and (o.priority, o.account_id, o.created_at, o.id) >= (j.priority, j.account_id, '-infinity', j.id)
                and (o.priority, o.account_id, o.created_at, o.id) < (j.priority, j.account_id, j.created_at, j.id)
            limit :most
        ) older
    ) as turn
    from accounts_running r where r.account_id = j.account_id
) mine
cross join lateral serving_workers(j.pool) w
cross join lateral (
    select avg(extract(epoch from finished_at - started_at))::float8 as mean_s from (
        select started_at, finished_at from jobs
        where pool = j.pool and state = 'completed' and not internal order by finished_at desc limit :recent
    ) last
) r
where j.id = :job_id;

-- name: sample_metrics(buckets, job_id, since_step)
-- Of each of `buckets` equal ranges of steps the points of least and greatest loss, and the first and the last of all.
with kept as (
    select step, (point ->> 'loss')::float8 as loss from job_metrics where job_id = :job_id and step > :since_step
), ends as (
    select min(step) as first, max(step) as last from kept
), ranked as (
    select step,
        row_number() over (partition by width_bucket(step, first, last + 1, :buckets) order by loss, step) as low,
        row_number() over (partition by width_bucket(step, first, last + 1, :buckets) order by loss desc, step) as high
    from kept, ends
)
select m.point from ranked join job_metrics m on m.job_id = :job_id and m.step = ranked.step
where low = 1 or high = 1 or ranked.step in (select first from ends union all select last from ends)
order by m.step;

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
