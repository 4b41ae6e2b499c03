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

-- name: jobs_by_state()
select pool, state, count(*) as jobs, min(created_at) as oldest from jobs
where state in ('queued', 'running', 'stopped') group by pool, state;

-- name: outbox_depth()$
select count(*) from outbox where fanned_out_at is null;
