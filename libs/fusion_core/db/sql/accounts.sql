-- An account's own view of itself: limits, use, and the keys of requests it may repeat.

-- name: lock_account(account_id)^
-- Jobs of one account are priced one at a time, so that two cannot both take the last of its limit. Not "for update":
-- a transaction that has written an idempotency key shares the account's key, and two of those would deadlock.
select * from accounts where id = :account_id for no key update;

-- name: lock_account_whole(account_id)^
-- Nobody is adding anything to the account, or will.
select id from accounts where id = :account_id for update;

-- name: set_spend(account_id, spend_limit_microusd, spend_warning_microusd)^
update accounts set spend_limit_microusd = :spend_limit_microusd, spend_warning_microusd = :spend_warning_microusd
where id = :account_id returning *;

-- name: spend_of_month(account_id)^
-- Billed in this calendar month, and what open jobs have reserved.
select
    (select coalesce(sum(amount_microusd), 0)::bigint from ledger
     where account_id = :account_id and created_at >= date_trunc('month', now() at time zone 'UTC') at time zone 'UTC')
        as billed_microusd,
    (select coalesce(sum(reserved_microusd), 0)::bigint from jobs
     where account_id = :account_id and state in ('queued', 'running', 'stopped')) as reserved_microusd;

-- name: overview(account_id, days)^
select
    (select count(*) from jobs where account_id = :account_id and type in ('train', 'contract', 'finetune')
        and state in ('queued', 'running')) as active_runs,
    (select count(*) from models where account_id = :account_id and status = 'ready') as models,
    (select count(*) from datasets where account_id = :account_id and status = 'ready') as datasets,
    coalesce(sum(l.gpu_seconds), 0)::float8 as gpu_seconds,
    coalesce(sum(l.tokens), 0)::bigint as tokens,
    coalesce(sum(l.amount_microusd), 0)::bigint as amount_microusd
from ledger l
where l.account_id = :account_id and l.created_at >= now() - make_interval(days => :days);

-- name: usage_by_day(account_id, days)
-- One row for each of the last days in UTC, also those without any.
select day::date as date, coalesce(sum(l.gpu_seconds), 0)::float8 as gpu_seconds,
    coalesce(sum(l.tokens), 0)::bigint as tokens, coalesce(sum(l.amount_microusd), 0)::bigint as amount_microusd,
    count(l.id) as jobs
from generate_series((now() at time zone 'UTC')::date - (:days::int - 1), (now() at time zone 'UTC')::date, '1 day') day
left join ledger l on l.account_id = :account_id
    and l.created_at >= day at time zone 'UTC' and l.created_at < (day + interval '1 day') at time zone 'UTC'
group by day order by day;

-- name: list_ledger(account_id, job_id, after, limit)
select l.*, j.type, j.state from ledger l join jobs j on j.id = l.job_id
where l.account_id = :account_id and (:job_id::uuid is null or l.job_id = :job_id)
    and (:after::uuid is null or l.id < :after)
order by l.id desc limit :limit;

-- name: take_idempotency_key(account_id, operation, key, request_sha256)^
-- The first request with a key wins; a second one waits here until the first is committed or gone.
insert into idempotency_keys (account_id, operation, key, request_sha256)
values (:account_id, :operation, :key, :request_sha256)
on conflict do nothing returning key;

-- name: get_idempotency_key(account_id, operation, key)^
select request_sha256, resource_id from idempotency_keys
where account_id = :account_id and operation = :operation and key = :key;

-- name: keep_idempotent_resource(resource_id, account_id, operation, key)!
update idempotency_keys set resource_id = :resource_id
where account_id = :account_id and operation = :operation and key = :key;

-- name: delete_old_idempotency_keys(hours, limit)$
with old as (
    select ctid from idempotency_keys where created_at < now() - make_interval(hours => :hours) limit :limit
), gone as (
    delete from idempotency_keys where ctid in (select ctid from old) returning 1
)
select count(*) from gone;
