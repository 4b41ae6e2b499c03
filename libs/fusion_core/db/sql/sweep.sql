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
select id, lease_epoch from jobs
where finished_at is null and state = 'running' and lease_expires_at < now()
order by lease_expires_at limit :limit;

-- name: expired_stops(days, limit)
select id from jobs where state = 'stopped' and stopped_at < now() - make_interval(days => :days) limit :limit;

-- name: overdue_jobs(limit)
select id, lease_epoch from jobs
where finished_at is null and stopped_at is null and deadline_at < now()
order by deadline_at limit :limit;

-- name: lock_overdue(job_id, epoch)^
-- Read again under the lock: it may have ended, been claimed or been given more time.
select *, deadline_at - created_at as allowed from jobs
where id = :job_id and state in ('queued', 'running') and lease_epoch = :epoch and deadline_at < now()
for update skip locked;

-- name: mark_gone_workers(silent_s)
-- A worker that holds a lease lives, however long ago it reported.
update workers w set state = 'gone', job_id = null
where state <> 'gone' and seen_at < now() - make_interval(secs => :silent_s)
    and not exists (
        select from jobs where lease_owner = w.id and state = 'running' and lease_expires_at > now()
    )
returning id, name, pool;

-- name: forget_gone_workers(days)!
delete from workers where state = 'gone' and seen_at < now() - make_interval(days => :days);

-- name: due_rings(depth, again_s)
-- The head of each pool's queue, in the order it should be served, where no bell has rung lately.
with recursive waiting as (
    (
        select j.pool from jobs j where j.finished_at is null and j.state = 'queued' and j.quarantined_at is null
        order by j.pool limit 1
    )
    union all
    select further.pool from waiting cross join lateral (
        select j.pool from jobs j
        where j.finished_at is null and j.state = 'queued' and j.quarantined_at is null and j.pool > waiting.pool
        order by j.pool limit 1
    ) further
)
select n.id, waiting.pool, n.lease_epoch, n.ring_count
from waiting cross join lateral serving_order(waiting.pool, :depth) n
where n.rung_at is null or n.rung_at < now() - make_interval(secs => :again_s)
order by waiting.pool, n.place;

-- name: ring_jobs(job_ids, epochs, ring_counts)
-- Compare and set: of two orchestrators that saw the same count one rings. Rows that somebody else holds are left alone:
-- they are being claimed, or rung for, and locks that nobody waits for cannot deadlock.
with free as (
    select j.id from unnest(:job_ids::uuid[], :epochs::int[], :ring_counts::int[]) as due (id, epoch, ring_count)
    join jobs j on j.id = due.id
    where j.state = 'queued' and j.lease_epoch = due.epoch and j.ring_count = due.ring_count
    for no key update of j skip locked
)
update jobs set ring_count = ring_count + 1, rung_at = now() from free where jobs.id = free.id
returning jobs.id, jobs.ring_count;
