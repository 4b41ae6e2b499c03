-- Workers that serve a pool: seen within the last minute or holding a lease, and not asked to give their work back.
create function serving_workers(of_pool text) returns table (workers bigint, idle bigint) language sql stable as $$
    select count(*), count(*) filter (where w.state = 'idle') from workers w
    where w.pool = of_pool and w.state <> 'gone' and w.state in ('idle', 'busy') and w.drain_requested_at is null and (
        w.seen_at > now() - interval '1 minute'
        or exists (select from jobs j where j.id = w.job_id and j.state = 'running' and j.lease_owner = w.id)
    )
$$;

-- Why a queued job is not running: every reason that holds, those that somebody must mend first. The words and a
-- sentence for each are in fusion_core/db/waiting.py; a job without any is taken as soon as an idle worker looks.
-- `behind` is no hold: every worker of the pool has a job.
create function waits_for(j jobs) returns text[] language sql stable as $$
    select case when j.state <> 'queued' then '{}' else array_remove(array[
        case when j.quarantined_at is not null then 'quarantined' end,
        case when exists (
            select from dispatch_pauses p where p.account_id = j.account_id and (p.pool is null or p.pool = j.pool)
        ) then 'account_paused' end,
        case when exists (
            select from dispatch_pauses p where p.account_id is null and p.pool = j.pool
        ) then 'pool_paused' end,
        case when exists (select from pools p where p.name = j.pool and p.cordoned_at is not null) then 'pool_cordoned' end,
        case when r.jobs >= a.max_running_jobs then 'account_limit' end,
        case when j.deadline_at <= now() then 'deadline_passed' end,
        case when j.not_before > now() then 'backing_off' end,
        -- what else keeps a job from being ready
        case when j.quarantined_at is null and j.not_before <= now() and coalesce(j.deadline_at > now(), true)
            and not exists (select from ready_jobs ready where ready.id = j.id) then 'rehearsal_pool' end,
        case when w.workers = 0 then 'no_worker' when w.idle = 0 then 'behind' end
    ], null) end
    from accounts a
    join accounts_running r on r.account_id = a.id
    cross join serving_workers(j.pool) w
    where a.id = j.account_id
$$;
