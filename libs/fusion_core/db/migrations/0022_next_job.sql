-- The order of service is read no further than a claim needs.

-- As before, and: in plpgsql, whose plans a connection keeps (a function in SQL is planned at every call); `per_line`
-- rows of each line are read instead of `depth`; `sure` is said of a job that no unread row could come before. An unread
-- row of a line counts as running + per_line + 1 jobs at least, and comes after all of a higher priority.
drop function serving_order(text, int, int, text[]);
create function serving_order(
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
                where j.state = 'queued' and j.quarantined_at is null and j.pool = of_pool
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

-- Locks the job that is served next of those that no other claim has its hands on: as many claims at once find a job
-- each as it looks at. The heads of the lines are enough unless others hold them; it never passes over an unread row.
create function lock_next_job(of_pool text, of_version int, able text[]) returns table (id uuid, account_id uuid)
language plpgsql volatile rows 1
set plan_cache_mode = force_generic_plan set jit = off
as $$
#variable_conflict use_column
declare
    looked int;
begin
    foreach looked in array array[1, 4, 16] loop
        return query
        select c.id, c.account_id
        from serving_order(of_pool, 16, of_version, able, looked) n join claimable c on c.id = n.id
        where n.sure or looked = 16
        order by n.place limit 1
        for update of c skip locked;
        exit when found;
    end loop;
end $$;
