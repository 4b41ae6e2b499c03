-- Who is served next, found in a time that depends on how many accounts wait, not on how many jobs do.

-- How many jobs of each account run, counted in the transition's own transaction.
create table accounts_running (
    account_id uuid primary key references accounts on delete cascade,
    jobs int not null default 0 check (jobs >= 0)
) with (fillfactor = 50);
insert into accounts_running
    select a.id, count(j.id) from accounts a left join jobs j on j.account_id = a.id and j.state = 'running' group by a.id;

create function begin_account_count() returns trigger language plpgsql as $$
begin
    insert into accounts_running (account_id) values (new.id);
    return null;
end $$;
create trigger account_count_begins after insert on accounts for each row execute function begin_account_count();

create function count_running_job() returns trigger language plpgsql as $$
begin
    update accounts_running set jobs = jobs + case when new.state = 'running' then 1 else -1 end
    where account_id = new.account_id;
    return null;
end $$;
create trigger job_begins_as_running after insert on jobs
    for each row when (new.state = 'running') execute function count_running_job();
create trigger job_is_counted after update of state on jobs
    for each row when ((old.state = 'running') <> (new.state = 'running')) execute function count_running_job();

drop index workers_of_pool;  -- workers_here is the same

-- A line is the queued jobs of one account at one priority in one pool, the oldest first.
drop index jobs_queued;
create index jobs_queued on jobs (pool, priority, account_id, created_at, id)
    where state = 'queued' and quarantined_at is null;

-- The lines of a pool, each found by one descent of the index from the one before (a loose index scan).
create function queue_lines(of_pool text) returns table (priority smallint, account_id uuid)
language sql stable as $$
    with recursive line as (
        (
            select j.priority, j.account_id from jobs j
            where j.state = 'queued' and j.quarantined_at is null and j.pool = of_pool
            order by j.priority, j.account_id limit 1
        )
        union all
        select further.priority, further.account_id from line cross join lateral (
            select j.priority, j.account_id from jobs j
            where j.state = 'queued' and j.quarantined_at is null and j.pool = of_pool
                and (j.priority, j.account_id) > (line.priority, line.account_id)
            order by j.priority, j.account_id limit 1
        ) further
    )
    select line.priority, line.account_id from line
$$;

-- What holds a whole line back: one row, with the number of the account's running jobs, where nothing does.
create function open_line(of_pool text, of_account uuid) returns table (account_running int)
language sql stable as $$
    select r.jobs from accounts a join accounts_running r on r.account_id = a.id
    where a.id = of_account
        and r.jobs < a.max_running_jobs
        and not exists (
            select from dispatch_pauses p
            where (p.pool is null or p.pool = of_pool) and (p.account_id is null or p.account_id = of_account)
        )
        and not exists (select from pools p where p.name = of_pool and p.cordoned_at is not null)
$$;

-- What holds one job back. A job waits for its base's rehearsal pool while that is being sampled, for half an hour at
-- most; after that its trainer samples a small one for itself.
create view ready_jobs as
select j.* from jobs j
where j.state = 'queued'
    and j.quarantined_at is null
    and j.not_before <= now()
    and j.cancel_requested_at is null
    and j.stop_requested_at is null
    and (j.deadline_at is null or j.deadline_at > now())
    and (
        j.internal or j.created_at < now() - interval '30 minutes'
        or not exists (
            select from jobs s
            where s.type = 'sample' and s.state in ('queued', 'running') and s.quarantined_at is null
                and (s.base_model_id = j.base_model_id or s.source_model_id = j.source_model_id)
        )
    );

-- The one predicate behind every way to claim. Pool, capabilities and version are the claimer's to compare.
drop view claimable;
create view claimable as
select j.*, line.account_running from ready_jobs j cross join lateral open_line(j.pool, j.account_id) line;

-- The claimable jobs of a pool in the order in which they are served: priority, then fair share, then age. An account's
-- n-th job in a line counts as if the n-1 before it were running. A line is read as a range of rows, which no index but
-- its own can answer: statistics that lag behind a growing queue cannot lead to another one and a sort.
create function serving_order(of_pool text, depth int, of_version int default null, able text[] default null)
returns table (id uuid, lease_epoch int, ring_count int, rung_at timestamptz, place bigint)
language sql stable rows 16
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
    select next.id, next.lease_epoch, next.ring_count, next.rung_at,
        row_number() over (
            order by line.priority desc, open.account_running + next.turn, next.created_at, next.id
        ) as place
    from queue_lines(of_pool) line
    cross join lateral open_line(of_pool, line.account_id) open
    cross join lateral (
        select head.*, row_number() over (order by head.created_at, head.id) as turn from (
            select j.id, j.lease_epoch, j.ring_count, j.rung_at, j.created_at from ready_jobs j
            where j.state = 'queued' and j.quarantined_at is null and j.pool = of_pool
                and (j.priority, j.account_id) >= (line.priority, line.account_id)
                and (j.priority, j.account_id) <= (line.priority, line.account_id)
                and j.spec_version <= coalesce(of_version, j.spec_version)
                and (j.requirements = '{}' or j.requirements <@ coalesce(able, j.requirements))
            order by j.priority, j.account_id, j.created_at, j.id limit depth
        ) head
    ) next
    order by place limit depth
$$;
