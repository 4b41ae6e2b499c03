-- The orchestrator's sweeps. Any number of replicas may run them at once.

-- name: begin_sweep(ttl_s, gap_s)$
-- Records this sweep; answers whether expired leases may be reclaimed. After a gap in the sweeps (Postgres or every
-- orchestrator was away) workers get one full lease to renew before anything is taken from them.
insert into sweeps (last_sweep_at, reclaim_after) values (now(), now() + make_interval(secs => :ttl_s))
on conflict (only_row) do update set
    reclaim_after = case
        when now() - sweeps.last_sweep_at > make_interval(secs => :gap_s) then now() + make_interval(secs => :ttl_s)
        else sweeps.reclaim_after end,
    last_sweep_at = now()
returning now() >= reclaim_after;

-- name: expired_leases(limit)
select id, lease_epoch from jobs where state = 'running' and lease_expires_at < now()
order by lease_expires_at limit :limit;

-- name: expired_stops(days, limit)
select id from jobs where state = 'stopped' and stopped_at < now() - make_interval(days => :days) limit :limit;

-- name: due_rings(depth, again_s)
-- The head of each pool's queue, in the order it should be served, where no bell has rung lately.
with ranked as (
    select id, pool, lease_epoch, ring_count, rung_at,
        row_number() over (partition by pool order by priority desc, account_running, created_at) as place
    from claimable
)
select id, pool, lease_epoch, ring_count from ranked
where place <= :depth and (rung_at is null or rung_at < now() - make_interval(secs => :again_s))
order by pool, place;

-- name: ring_job(job_id, epoch, ring_count)$
-- Compare and set: of two orchestrators that saw the same count one rings.
update jobs set ring_count = ring_count + 1, rung_at = now()
where id = :job_id and state = 'queued' and lease_epoch = :epoch and ring_count = :ring_count
returning ring_count;

-- name: attempt_is_live(job_id, attempt_id)$
select exists (select from jobs where id = :job_id and state = 'running' and attempt_id = :attempt_id);

-- name: named_prefixes(job_id)
-- Every prefix or key under a job's folder that some row names.
select s3_prefix as name from checkpoints where job_id = :job_id and state = 'ok'
union all select s3_prefix from models where job_id = :job_id and status = 'ready'
union all select s.s3_key from shards s join jobs j on j.dataset_id = s.dataset_id
where j.id = :job_id and j.type = 'ingest';

-- name: prunable_uploads(limit)
-- Uploads past their time that no dataset took, or whose dataset has been read.
select u.id, u.s3_key from uploads u
left join dataset_uploads d on d.upload_id = u.id left join datasets s on s.id = d.dataset_id
where u.expires_at < now() and (d.upload_id is null or s.status <> 'validating')
order by u.expires_at limit :limit;

-- name: delete_upload(upload_id)!
-- Looks again: an upload that a dataset took keeps its row, for lineage.
delete from uploads u where u.id = :upload_id and u.expires_at < now()
    and not exists (select from dataset_uploads d where d.upload_id = u.id);

-- name: jobs_by_state()
select pool, state, count(*) as jobs, min(created_at) as oldest from jobs
where state in ('queued', 'running', 'stopped') group by pool, state;

-- name: outbox_depth()$
select count(*) from outbox where delivered_at is null;
