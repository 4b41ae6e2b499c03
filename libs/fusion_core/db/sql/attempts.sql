-- What a worker reads and writes during an attempt. State columns are assigned in transitions.sql only.

-- name: get_claim(job_id, attempt_id)^
-- The job as held by an attempt whose claim's answer was lost.
select * from jobs where id = :job_id and state = 'running' and attempt_id = :attempt_id;

-- name: get_held(attempt_ids)^
-- What a worker holds without knowing, because the answer to one of these claims was lost.
select * from jobs
where finished_at is null and state = 'running' and attempt_id = any(:attempt_ids::uuid[]) limit 1;

-- name: lock_attempt(job_id, epoch, attempt_id)^
-- The fence: locks the job's row for an attempt. No row: the lease is lost.
select * from jobs
where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
for update;

-- name: lock_expired(job_id, epoch)^
-- The reaper's fence, read again under the lock.
select * from jobs
where id = :job_id and state = 'running' and lease_epoch = :epoch and lease_expires_at < now()
for update skip locked;

-- name: lock_job(job_id)^
select * from jobs where id = :job_id for update;

-- name: append_event(job_id, type, data)$
-- Number one event of the platform's own under the job's row lock; answers its sequence number.
with numbered as (
    update jobs set event_seq = event_seq + 1 where id = :job_id returning event_seq
)
insert into job_events (job_id, seq, type, data) select :job_id, event_seq, :type, :data from numbered
returning seq;

-- name: append_attempt_events(numbers, types, payloads, phase, job_id, epoch, attempt_id)$
-- A worker's batch: number what has not been recorded yet and answer how many that were; of metrics, the later epoch
-- wins a step. No row: the lease is lost.
with held as (
    select id, attempt_events from jobs
    where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
    for update
), batch as (
    select number, type, data::jsonb as data, row_number() over (order by number) as place
    from held, unnest(:numbers::int[], :types::text[], :payloads::text[]) as b (number, type, data)
    where number > held.attempt_events
), numbered as (
    update jobs set
        event_seq = event_seq + fresh.count,
        attempt_events = fresh.last,
        phase = coalesce(:phase, phase),
        grown_at = case when fresh.grown then coalesce(grown_at, now()) else grown_at end
    from (select count(*), max(number) as last, bool_or(type = 'grown') as grown from batch) as fresh
    where jobs.id = :job_id and fresh.count > 0
    returning event_seq - fresh.count as first
), events as (
    insert into job_events (job_id, seq, type, data, attempt_id, attempt_seq)
    select :job_id, first + place, type, data, :attempt_id, number from batch, numbered
), points as (
    insert into job_metrics (job_id, step, epoch, point)
    select distinct on (step) :job_id, step, :epoch, data  -- a step trained again after a rollback: its last point
    from (select (data ->> 'step')::int as step, data, number from batch where type = 'metrics') as metrics
    order by step, number desc
    on conflict (job_id, step) do update set epoch = excluded.epoch, point = excluded.point
    where job_metrics.epoch <= excluded.epoch
)
select (select count(*) from batch) from held;

-- name: commit_checkpoint(step, format_version, turn_end, s3_prefix, manifest, data, topic, job_id, epoch, attempt_id)$
-- The checkpoint, the progress it makes (the counters of interruptions without progress start anew), the event and the
-- webhook's row. Repeated, it changes nothing. No row: the lease is lost.
with held as (
    select id from jobs
    where id = :job_id and state = 'running' and lease_epoch = :epoch and attempt_id = :attempt_id
    for update
), stored as (
    insert into checkpoints (job_id, step, epoch, attempt_id, format_version, turn_end, s3_prefix, manifest)
    select id, :step, :epoch, :attempt_id, :format_version, :turn_end, :s3_prefix, :manifest from held
    on conflict (job_id, step, epoch) do nothing
    returning step
), advanced as (
    update jobs set
        last_checkpoint_step = greatest(last_checkpoint_step, stored.step),
        crashes = case when last_checkpoint_step < stored.step then 0 else crashes end,
        losses = case when last_checkpoint_step < stored.step then 0 else losses end,
        event_seq = event_seq + 1
    from stored where jobs.id = :job_id
    returning id, event_seq, internal
), event as (
    insert into job_events (job_id, seq, type, data) select id, event_seq, 'checkpoint', :data from advanced
), hook as (
    insert into outbox (job_id, seq, topic) select id, event_seq, :topic from advanced where not internal
)
select id from held;

-- name: readable_checkpoints(job_id)
-- Newest first; at one step the later epoch first.
select step, epoch, s3_prefix, manifest, format_version from checkpoints
where job_id = :job_id and state = 'ok' order by step desc, epoch desc;

-- name: checkpoint_age(job_id)$
-- Seconds since the newest readable checkpoint was committed; null where there is none.
select extract(epoch from now() - created_at)::float8 from checkpoints
where job_id = :job_id and state = 'ok' order by step desc, epoch desc limit 1;

-- name: lose_checkpoint(job_id, step, epoch)!
update checkpoints set state = 'lost' where job_id = :job_id and step = :step and epoch = :epoch and state = 'ok';

-- name: fall_back_checkpoint(job_id)!
update jobs set last_checkpoint_step = coalesce(
    (select max(step) from checkpoints where job_id = :job_id and state = 'ok'), 0)
where id = :job_id;

-- name: lock_model_name(account_id, name)$
-- Versions of one name are numbered one at a time.
select pg_advisory_xact_lock(hashtextextended(:account_id::uuid || '/' || :name, 0));

-- name: insert_ledger(account_id, job_id, amount_microusd, line_items, tokens, price_version)!
insert into ledger (account_id, job_id, amount_microusd, line_items, tokens, price_version, gpu_seconds)
select :account_id, :job_id, :amount_microusd, :line_items, :tokens, :price_version, gpu_seconds
from jobs where id = :job_id;

-- name: insert_outbox(job_id, seq, topic)!
insert into outbox (job_id, seq, topic) values (:job_id, :seq, :topic);

-- name: insert_shard(dataset_id, split, ordinal, s3_key, bytes, rows, sha256)!
insert into shards (dataset_id, split, ordinal, s3_key, bytes, rows, sha256)
values (:dataset_id, :split, :ordinal, :s3_key, :bytes, :rows, :sha256);

-- name: dataset_ready(shard_count, bytes, rows, heldout_rows, dataset_id)!
update datasets set status = 'ready', shard_count = :shard_count, bytes = :bytes, rows = :rows,
    heldout_rows = :heldout_rows
where id = :dataset_id and status = 'validating';

-- name: dataset_failed(error, dataset_id)!
update datasets set status = 'failed', error = :error where id = :dataset_id and status = 'validating';

-- name: insert_dataset_report(dataset_id, report)!
with kept as (insert into dataset_reports (dataset_id, report) values (:dataset_id, :report))
update datasets set skipped_rows = (:report::jsonb ->> 'skipped_rows')::bigint where id = :dataset_id;

-- name: base_of_job(job_id)^
-- The folder a job starts from: a catalog base model, or a model of the account's own.
select b.s3_prefix, b.manifest, b.config, b.rehearsal, b.id as base_model_id, null::uuid as parent_model_id
from jobs j join base_models b on b.id = j.base_model_id where j.id = :job_id
union all
select m.s3_prefix, m.manifest, m.config, b.rehearsal, m.base_model_id, m.id
from jobs j join models m on m.id = j.source_model_id left join base_models b on b.id = m.base_model_id
where j.id = :job_id;

-- name: rehearsal_of_job(job_id)^
-- Rehearsal files lie beside the catalog base model, also for a model grown from it.
select b.s3_prefix, b.rehearsal from jobs j
left join models m on m.id = j.source_model_id
join base_models b on b.id = coalesce(j.base_model_id, m.base_model_id)
where j.id = :job_id and b.rehearsal is not null;

-- name: insert_rehearsal_pool(job_id, base_model_id, model_id, manifest)!
insert into rehearsal_pools (job_id, base_model_id, model_id, manifest)
values (:job_id, :base_model_id, :model_id, :manifest);

-- name: pool_of_job(job_id)$
-- The manifest of the text sampled from the very folder that the job starts from. No row: it has not been sampled.
select p.manifest from jobs j
join rehearsal_pools p on p.base_model_id = j.base_model_id or p.model_id = j.source_model_id
where j.id = :job_id;

-- name: dataset_name_of_job(job_id)$
-- The name and version of the dataset, for the model card. No row: the job has none.
select d.name || ' v' || d.version from jobs j join datasets d on d.id = j.dataset_id where j.id = :job_id;

-- name: shards_of_dataset(dataset_id)
select split, s3_key, bytes, rows, sha256 from shards where dataset_id = :dataset_id order by split, ordinal;

-- name: uploads_of_dataset(dataset_id)
select u.s3_key, u.filename, d.size, d.etag
from dataset_uploads d join uploads u on u.id = d.upload_id where d.dataset_id = :dataset_id order by d.ordinal;

-- name: declare_pool(pool, gpu_class, gpu_count, worker_id)!
-- What a worker says about its machine, unless it says nothing; a pool that an operator declared stays as it was then.
with worker as (
    update workers set gpu_class = :gpu_class where id = :worker_id
)
insert into pools (name, gpu_class, gpu_count) values (:pool, :gpu_class, :gpu_count)
on conflict (name) do update set gpu_class = excluded.gpu_class, gpu_count = excluded.gpu_count
where excluded.gpu_class is not null
    and (pools.gpu_class, pools.gpu_count) is distinct from (excluded.gpu_class, excluded.gpu_count);

-- name: register_worker(id, name, pool, spec_version, capabilities, version, gpus)^
-- A drain outlives the process: it holds for who comes with the same name into the same pool, until it is undone.
-- Rows that a later process has followed say nothing any more; of several processes with one name all must be drained.
with known as (
    select w.drain_requested_at, w.drain_reason, w.seen_at, max(w.started_at) over () as last_start
    from workers w where w.name = :name and w.pool = :pool
), kept as (
    select min(k.drain_requested_at) as since, min(k.drain_reason) as reason from known k
    where k.seen_at >= k.last_start having bool_and(k.drain_requested_at is not null)
)
insert into workers (
    id, name, pool, spec_version, capabilities, version, gpus, state, drain_requested_at, drain_reason
) values (
    :id, :name, :pool, :spec_version, :capabilities, :version, :gpus, 'idle', (select since from kept),
    (select reason from kept)
)
on conflict (id) do update set seen_at = now(), state = 'idle'
returning drain_requested_at is not null as drained;

-- name: worker_seen(state, job_id, id)^
-- Answers whether an operator has drained it. No row: it was silent for so long that it has been forgotten, and must
-- register again.
update workers set seen_at = now(), state = :state, job_id = :job_id where id = :id
returning drain_requested_at is not null as drained;
