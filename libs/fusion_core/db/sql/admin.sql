-- The person on call: who may, what there is to see, and the log of what was done. Transitions are in transitions.sql.

-- name: insert_operator_token(name, role, prefix, secret_sha256)^
-- No row: a live token has this name, and the audit log tells actors apart by it.
insert into operator_tokens (name, role, prefix, secret_sha256)
values (:name, :role, :prefix, :secret_sha256)
on conflict do nothing returning *;

-- name: list_operator_tokens(limit)
select * from operator_tokens order by id desc limit :limit;

-- name: lock_operator_token(token_id)^
select * from operator_tokens where id = :token_id for update;

-- name: revoke_operator_token(token_id)^
update operator_tokens set revoked_at = coalesce(revoked_at, now()) where id = :token_id returning *;

-- name: operator_token_by_hash(secret_sha256)^
select * from operator_tokens where secret_sha256 = :secret_sha256 and revoked_at is null;

-- name: touch_operator_token(token_id)!
update operator_tokens set last_used_at = now() where id = :token_id;

-- name: list_audit(actor, target_type, target, after, limit)
select * from audit_log
where (:actor::text is null or actor = :actor) and (:target_type::text is null or target_type = :target_type)
    and (:target::text is null or target = :target) and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: admin_overview(silent_s)^
-- Silent workers are those of workers_by_state.
select
    (select coalesce(jsonb_object_agg(state, jobs), '{}') from (
        select state, count(*) as jobs from jobs where finished_at is null group by state
    ) s) as jobs,
    (select count(*) from jobs
        where finished_at is null and state = 'queued' and quarantined_at is not null) as quarantined,
    (select count(*) from jobs
        where finished_at is null and state = 'running' and lease_expires_at < now()) as expired_leases,
    (select coalesce(jsonb_object_agg(state, workers), '{}') from (
        select state, count(*) as workers from workers where state <> 'gone' group by state
    ) w) as workers,
    (
        select count(*) from workers w where state <> 'gone' and seen_at < now() - make_interval(secs => :silent_s)
            and not exists (select from jobs j where j.id = w.job_id and j.lease_owner = w.id)
    ) as silent_workers,
    array(select name from pools where cordoned_at is not null order by name) as cordoned_pools,
    (select last_sweep_at from sweeps) as last_sweep_at;

-- name: list_pauses(limit)
select * from dispatch_pauses order by id desc limit :limit;

-- name: admin_jobs(state, pool, account_id, after, limit)
-- Jobs of every account and type, the newest first, and what keeps each queued one from being claimed.
select j.*, a.name as account_name, w.name as worker_name, waits_for(j) as waits_for
from jobs j
join accounts a on a.id = j.account_id
left join lateral (select name from workers where id = j.lease_owner limit 1) w on true
where j.id < coalesce(:after::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
    and (:state::text is null or j.state = :state) and (:pool::text is null or j.pool = :pool)
    and (:account_id::uuid is null or j.account_id = :account_id)
order by j.id desc limit :limit;

-- name: admin_job(job_id)^
select j.*, a.name as account_name, w.name as worker_name, waits_for(j) as waits_for
from jobs j join accounts a on a.id = j.account_id left join workers w on w.id = j.lease_owner where j.id = :job_id;

-- name: last_events(job_id, limit)
select seq, type, data, attempt_id, created_at from job_events
where job_id = :job_id order by seq desc limit :limit;

-- name: attempts_of_job(job_id, limit)
-- One row for each claim and each interruption, the newest first.
select seq, type, data, created_at from job_events
where job_id = :job_id and type in ('claimed', 'interrupted') order by seq desc limit :limit;

-- name: admin_leases(pool, after, limit)
select j.id, j.account_id, j.type, j.pool, j.phase, j.lease_owner as worker_id, w.name as worker_name,
    w.seen_at as worker_seen_at, j.lease_epoch, j.attempt_id, j.claimed_at, j.lease_expires_at,
    extract(epoch from now() - j.claimed_at)::float8 as age_s, j.lease_expires_at < now() as expired
from jobs j
left join lateral (select name, seen_at from workers where id = j.lease_owner limit 1) w on true
where j.finished_at is null and j.state = 'running' and (:pool::text is null or j.pool = :pool)
    and (:after::uuid is null or j.id < :after)
order by j.id desc limit :limit;

-- name: admin_workers(worker_id, pool, state, after, limit)
select * from workers
where (:worker_id::uuid is null or id = :worker_id) and (:pool::text is null or pool = :pool)
    and (:state::text is null or state = :state) and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: admin_queues(recent, limit)
-- By pool: what waits and who serves; how long its last jobs took.
with names as (
    select name from pools
    union select distinct pool from jobs where finished_at is null and state in ('queued', 'running')
    union select distinct pool from workers where state <> 'gone'
), open as (
    select pool, count(*) filter (where state = 'queued') as queued, count(*) filter (where state = 'running') as running,
        min(created_at) filter (where state = 'queued') as oldest
    from jobs where finished_at is null and state in ('queued', 'running') group by pool
), waiting as (
    select pool, count(*) as jobs from claimable
    where finished_at is null and state = 'queued' and quarantined_at is null group by pool
), leaving as (
    select pool, count(*) as draining from workers
    where state <> 'gone' and (state = 'draining' or drain_requested_at is not null) group by pool
)
select n.name, p.gpu_class, coalesce(p.gpu_count, 0) as gpu_count, p.cordoned_at, p.cordon_reason,
    coalesce(o.queued, 0) as queued, coalesce(o.running, 0) as running, coalesce(w.jobs, 0) as claimable,
    coalesce(o.queued, 0) - coalesce(w.jobs, 0) as held,
    coalesce(extract(epoch from now() - o.oldest), 0)::float8 as oldest_age_s,
    s.idle, s.workers - s.idle as busy, coalesce(d.draining, 0) as draining, r.mean_s
from names n
left join pools p on p.name = n.name
left join open o on o.pool = n.name
left join waiting w on w.pool = n.name
left join leaving d on d.pool = n.name
cross join lateral serving_workers(n.name) s
cross join lateral (
    select avg(extract(epoch from finished_at - started_at))::float8 as mean_s from (
        select started_at, finished_at from jobs
        where pool = n.name and state = 'completed' and not internal order by finished_at desc limit :recent
    ) last
) r
order by n.name limit :limit;

-- name: webhook_endpoints_behind(after, limit)
-- Endpoints with deliveries that wait or have failed.
select e.id, e.account_id, e.url, e.enabled, e.disabled_reason, e.failing_since, d.pending, d.failed,
    d.oldest_due_at
from webhook_endpoints e
cross join lateral (
    select count(*) filter (where state = 'pending') as pending, count(*) filter (where state = 'failed') as failed,
        min(next_attempt_at) filter (where state = 'pending' and next_attempt_at <= now()) as oldest_due_at
    from webhook_deliveries where endpoint_id = e.id and state in ('pending', 'failed')
) d
where d.pending + d.failed > 0 and (:after::uuid is null or e.id < :after)
order by e.id desc limit :limit;

-- name: storage_by_kind()
-- What rows name. The difference to what the bucket holds is for the pruner.
with sized as (
    select 'checkpoints' as kind, manifest from checkpoints where state = 'ok' and stored_by is null
    union all select 'models', manifest from models where status = 'ready'
    union all select 'base_models', manifest from base_models
    union all select 'rehearsal_pools', manifest from rehearsal_pools
)
select kind, count(*) as items, coalesce(sum((
    select sum((file ->> 'size')::bigint) from jsonb_array_elements(manifest -> 'files') file
)), 0)::bigint as bytes from sized group by kind
union all
select 'shards', count(*), coalesce(sum(s.bytes), 0)::bigint
from shards s join datasets d on d.id = s.dataset_id where d.status <> 'deleted'
union all
select 'uploads', count(*), coalesce(sum(size), 0)::bigint from uploads where expires_at >= now()
order by kind;

-- name: set_priority(priority, job_id)!
update jobs set priority = :priority where id = :job_id and priority <> :priority;

-- name: set_deadline(deadline_at, job_id)!
update jobs set deadline_at = :deadline_at where id = :job_id and deadline_at is distinct from :deadline_at;

-- name: lock_worker(worker_id)^
select * from workers where id = :worker_id for update;

-- name: drain_worker(reason, worker_id)!
-- The first reason stays. The worker reads this in the answer to its next report.
update workers set drain_requested_at = now(), drain_reason = :reason
where id = :worker_id and drain_requested_at is null;

-- name: undrain_worker(worker_id)!
update workers set drain_requested_at = null, drain_reason = null where id = :worker_id;

-- name: declare_known_pool(name)!
-- A pool that workers or jobs name gets its row, to which a cordon is tied.
insert into pools (name)
select :name where exists (select from workers where pool = :name) or exists (select from jobs where pool = :name)
on conflict do nothing;

-- name: lock_pool(name)^
select name, cordoned_at, cordon_reason from pools where name = :name for update;

-- name: cordon_pool(reason, name)!
update pools set cordoned_at = now(), cordon_reason = :reason where name = :name and cordoned_at is null;

-- name: uncordon_pool(name)!
update pools set cordoned_at = null, cordon_reason = null where name = :name;

-- name: lock_dispatch()$
-- Pauses are looked at and made one at a time.
select pg_advisory_xact_lock(hashtextextended('dispatch', 0));

-- name: find_pause(pool, account_id)^
select pool, account_id, reason, created_at from dispatch_pauses
where pool is not distinct from :pool::text and account_id is not distinct from :account_id::uuid
order by id limit 1;

-- name: pause_dispatch(pool, account_id, reason)!
insert into dispatch_pauses (pool, account_id, reason) values (:pool, :account_id, :reason);

-- name: resume_dispatch(pool, account_id)!
delete from dispatch_pauses
where pool is not distinct from :pool::text and account_id is not distinct from :account_id::uuid;

-- name: lock_webhook_of_any(webhook_id)^
select id, account_id, enabled from webhook_endpoints where id = :webhook_id for update;

-- name: undelivered(webhook_id, limit)
-- What ran out of attempts, or was cancelled when the endpoint was disabled: the oldest first.
select id from webhook_deliveries where endpoint_id = :webhook_id and state in ('failed', 'cancelled')
order by id limit :limit;
