-- What the orchestrator tells Prometheus and autoscalers. Each reads open rows alone, by an index.

-- name: jobs_by_state()
select pool, state, count(*) as jobs, count(quarantined_at) as quarantined, min(created_at) as oldest from jobs
where finished_at is null group by pool, state;

-- name: pool_demand()
-- Slots wanted: what runs, and what may be claimed now (the view claimable, asked once an account) as far as each
-- account's limit lets it. `since` is when the job that has waited longest could first have been claimed. Pools without
-- work are there, too.
with waiting as materialized (
    select pool, account_id, count(*) as jobs, min(greatest(created_at, not_before)) as since
    from ready_jobs where finished_at is null group by pool, account_id
), wanted as (
    select w.pool, least(w.jobs, a.max_running_jobs - line.account_running) as slots, w.since
    from waiting w cross join lateral open_line(w.pool, w.account_id) line join accounts a on a.id = w.account_id
    union all
    select pool, count(*), null from jobs where finished_at is null and state = 'running' group by pool
    union all
    select name, 0, null from pools
)
select pool, sum(slots)::bigint as slots, min(since) as since from wanted group by pool;

-- name: overdue_leases()$
select count(*) from jobs
where finished_at is null and state = 'running' and lease_expires_at < now();

-- name: checkpoint_ages()
-- Seconds since each running customer's job last committed a checkpoint, or was claimed if that is later.
select j.pool, extract(epoch from now() - greatest(j.claimed_at, c.created_at))::float8 as age_s
from jobs j
left join lateral (
    select created_at from checkpoints where job_id = j.id and state = 'ok' order by id desc limit 1
) c on true
where j.finished_at is null and j.state = 'running' and not j.internal;

-- name: workers_by_state(silent_s)
-- `silent`: neither seen lately nor holding a lease. `failures`: the most attempts in a row that crashed on one worker.
select pool, case
        when seen_at > now() - make_interval(secs => :silent_s)
            or exists (select from jobs j where j.id = w.job_id and j.lease_owner = w.id) then state
        else 'silent' end as state,
    count(*) as workers, max(failures) as failures
from workers w where state <> 'gone' group by 1, 2;

-- name: holds()^
-- What operators hold back, and may have forgotten.
select (select count(*) from dispatch_pauses) as pauses,
    (select count(*) from pools where cordoned_at is not null) as cordons,
    (select count(*) from workers where state <> 'gone' and drain_requested_at is not null) as drains;

-- name: outbox_depth()$
select count(*) from outbox where fanned_out_at is null;

-- name: webhook_backlog()^
select count(*) as deliveries, min(next_attempt_at) as oldest from webhook_deliveries
where state = 'pending' and next_attempt_at <= now();

-- name: busy_workers()
-- The names of those that hold a lease, be it that of a job which is being reclaimed.
select w.name from jobs j join workers w on w.id = j.lease_owner where j.state = 'running';
