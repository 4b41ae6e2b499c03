-- Fewer indexes for a state change to write, none that a statement about one job could take for its own, and a claim that
-- reads each line of the queue once.

-- Indexes of open jobs say `finished_at is null`, which is the same as state in ('queued', 'running', 'stopped') (a check
-- of jobs). Statements that look for jobs say it, too; those that name a job by its id do not, so that no plan of theirs,
-- made when next to nothing was open, reads all that is open later. While processes of the release before run, their
-- sweeps and lists of open jobs read the whole table.
drop index jobs_queued;
create index jobs_queued on jobs (pool, priority, account_id, created_at, id)
    where finished_at is null and state = 'queued' and quarantined_at is null;
drop index jobs_deadlines;
create index jobs_deadlines on jobs (deadline_at) where finished_at is null and stopped_at is null;
drop index jobs_open;
create index jobs_open on jobs (state, pool) include (created_at, quarantined_at) where finished_at is null;
drop index jobs_stopped;
create index jobs_stopped on jobs (stopped_at) where stopped_at is not null;
drop index jobs_running_of_account;  -- expired_leases, figures and leases read jobs_open

-- What one more column makes of two.
drop index jobs_open_of_account;  -- spend_of_month and account_deletion.sql read jobs_by_state
drop index jobs_by_state;
create index jobs_by_state on jobs (account_id, state, id desc) include (reserved_microusd);
drop index jobs_open_of_model;  -- model_in_use and delete_expired_models read jobs_of_model
drop index jobs_of_model;
create index jobs_of_model on jobs (source_model_id, state) where source_model_id is not null;
drop index jobs_open_of_dataset;  -- dataset_in_use reads jobs_by_dataset

-- A job has no model until it is completed.
alter table jobs drop constraint jobs_output_model_id_key;
create unique index jobs_output_model_id_key on jobs (output_model_id) where output_model_id is not null;

-- As before, with `finished_at is null`.
create or replace function queue_lines(of_pool text) returns table (priority smallint, account_id uuid)
language sql stable as $$
    with recursive line as (
        (
            select j.priority, j.account_id from jobs j
            where j.finished_at is null and j.state = 'queued' and j.quarantined_at is null and j.pool = of_pool
            order by j.priority, j.account_id limit 1
        )
        union all
        select further.priority, further.account_id from line cross join lateral (
            select j.priority, j.account_id from jobs j
            where j.finished_at is null and j.state = 'queued' and j.quarantined_at is null and j.pool = of_pool
                and (j.priority, j.account_id) > (line.priority, line.account_id)
            order by j.priority, j.account_id limit 1
        ) further
    )
    select line.priority, line.account_id from line
$$;

create or replace function serving_order(
    of_pool text, depth int, of_version int default null, able text[] default null, per_line int default null
)
returns table (id uuid, lease_epoch int, ring_count int, rung_at timestamptz, place bigint, sure boolean)
language plpgsql stable rows 16
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select served.id, served.lease_epoch, served.ring_count, served.rung_at,
        row_number() over (order by served.priority desc, served.share, served.created_at, served.id) as place,
        served.priority = max(served.priority) over ()
            and served.share <= min(served.account_running) over (partition by served.priority) + coalesce(per_line, depth)
    from (
        select next.*, line.priority, open.account_running, open.account_running + next.turn as share
        from queue_lines(of_pool) line
        cross join lateral open_line(of_pool, line.account_id) open
        cross join lateral (
            select head.*, row_number() over (order by head.created_at, head.id) as turn from (
                select j.id, j.lease_epoch, j.ring_count, j.rung_at, j.created_at from ready_jobs j
                where j.finished_at is null and j.state = 'queued' and j.quarantined_at is null and j.pool = of_pool
                    and (j.priority, j.account_id) >= (line.priority, line.account_id)
                    and (j.priority, j.account_id) <= (line.priority, line.account_id)
                    and j.spec_version <= coalesce(of_version, j.spec_version)
                    and (j.requirements = '{}' or j.requirements <@ coalesce(able, j.requirements))
                order by j.priority, j.account_id, j.created_at, j.id limit coalesce(per_line, depth)
            ) head
        ) next
    ) served
    order by place limit depth;
end $$;

-- Of each line the first job that is ready and within a worker's powers: a line costs one descent of the index.
create function ready_heads(of_pool text, of_version int, able text[])
returns table (id uuid, account_id uuid, priority smallint, created_at timestamptz)
language sql stable as $$
    with recursive head as (
        (
            select j.id, j.account_id, j.priority, j.created_at from ready_jobs j
            where j.finished_at is null and j.state = 'queued' and j.quarantined_at is null and j.pool = of_pool
                and j.spec_version <= of_version and (j.requirements = '{}' or j.requirements <@ able)
            order by j.priority, j.account_id, j.created_at, j.id limit 1
        )
        union all
        select further.* from head cross join lateral (
            select j.id, j.account_id, j.priority, j.created_at from ready_jobs j
            where j.finished_at is null and j.state = 'queued' and j.quarantined_at is null and j.pool = of_pool
                and j.spec_version <= of_version and (j.requirements = '{}' or j.requirements <@ able)
                and (j.priority, j.account_id) > (head.priority, head.account_id)
            order by j.priority, j.account_id, j.created_at, j.id limit 1
        ) further
    )
    select head.id, head.account_id, head.priority, head.created_at from head
$$;

-- As before, but first it looks at the heads of the lines alone: of the highest priority's open lines those whose accounts
-- run the fewest jobs. No other job comes before these heads. Where others hold them all, it looks further.
create or replace function lock_next_job(of_pool text, of_version int, able text[])
returns table (id uuid, account_id uuid)
language plpgsql volatile rows 1
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
    looked int;
begin
    return query
    select c.id, c.account_id
    from (
        select open.id, open.created_at from (
            select head.*, line.account_running, max(head.priority) over () as highest,
                min(line.account_running) over (partition by head.priority) as fewest
            from ready_heads(of_pool, of_version, able) head
            cross join lateral open_line(of_pool, head.account_id) line
        ) open
        where open.priority = open.highest and open.account_running = open.fewest
        order by open.created_at, open.id limit 16
    ) first
    join claimable c on c.id = first.id
    order by first.created_at, first.id limit 1
    for update of c skip locked;
    if found then
        return;
    end if;
    foreach looked in array array[4, 16] loop
        return query
        select c.id, c.account_id
        from serving_order(of_pool, 16, of_version, able, looked) n join claimable c on c.id = n.id
        where n.sure or looked = 16
        order by n.place limit 1
        for update of c skip locked;
        exit when found;
    end loop;
end $$;

-- Locks one named job at an epoch, waiting for whoever holds it, or, where none is named, the next.
create function lock_claimable(of_job uuid, at_epoch int, of_pool text, of_version int, able text[])
returns table (id uuid, account_id uuid)
language plpgsql volatile rows 1 set plan_cache_mode = force_generic_plan set jit = off
as $$
#variable_conflict use_column
begin
    if of_job is null then
        return query select * from lock_next_job(of_pool, of_version, able);
        return;
    end if;
    return query
    select c.id, c.account_id from claimable c
    where c.id = of_job and c.lease_epoch = at_epoch
        and c.pool = of_pool and c.spec_version <= of_version and c.requirements <@ able
    for update of c;
end $$;
