-- As before, but a head's own row is looked at again and not its line, too, which the same statement has found open.
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
    select j.id, j.account_id
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
    join ready_jobs j on j.id = first.id
    order by first.created_at, first.id limit 1
    for update of j skip locked;
    if found then
        return;
    end if;
    foreach looked in array array[4, 16] loop
        return query
        select j.id, j.account_id
        from serving_order(of_pool, 16, of_version, able, looked) n join ready_jobs j on j.id = n.id
        where n.sure or looked = 16
        order by n.place limit 1
        for update of j skip locked;
        exit when found;
    end loop;
end $$;
