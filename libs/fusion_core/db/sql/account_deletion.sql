-- Deleting an account: closed at once, emptied as its jobs end. Objects in the store are the pruner's.

-- name: contents_of_account(account_id)^
select a.name, a.deleted_at,
    (select count(*) from jobs where account_id = a.id) as jobs,
    (select count(*) from jobs where account_id = a.id and state in ('queued', 'running', 'stopped')) as open_jobs,
    (select count(*) from models where account_id = a.id) as models,
    (select count(*) from datasets where account_id = a.id) as datasets,
    (select count(*) from uploads where account_id = a.id) as uploads,
    (select count(*) from api_keys where account_id = a.id) as api_keys,
    (select count(*) from webhook_endpoints where account_id = a.id) as webhooks
from accounts a where a.id = :account_id;

-- name: close_account(account_id)^
-- Its keys stop working and its webhooks stop being sent with this statement. No row: it is closed already, or unknown.
with keys as (
    update api_keys set revoked_at = now() where account_id = :account_id and revoked_at is null
), hooks as (
    delete from webhook_endpoints where account_id = :account_id
)
update accounts set deleted_at = now() where id = :account_id and deleted_at is null
returning deleted_at;

-- name: closed_accounts(limit)
select id from accounts where deleted_at is not null order by deleted_at limit :limit;

-- name: open_jobs_of_account(account_id, limit)
-- Those that nobody has cancelled yet.
select id from jobs
where account_id = :account_id and state in ('queued', 'running', 'stopped') and cancel_requested_at is null
limit :limit;

-- name: has_open_jobs(account_id)$
select exists (select from jobs where account_id = :account_id and state in ('queued', 'running', 'stopped'));

-- name: histories_of_account(account_id, limit)
select id from jobs where account_id = :account_id and history_deleted_at is null limit :limit;

-- name: delete_outbox_of_jobs(job_ids)!
delete from outbox where job_id = any(:job_ids::uuid[]);

-- name: write_ledger_stubs(account_id)!
insert into ledger_stubs (job_id, account_id, type, amount_microusd, tokens, price_version, billed_at)
select j.id, j.account_id, j.type, coalesce(l.amount_microusd, 0), coalesce(l.tokens, 0), l.price_version, l.created_at
from jobs j left join ledger l on l.job_id = j.id
where j.account_id = :account_id
on conflict do nothing;

-- name: delete_account_rows(account_id)!
-- Everything that is left, as one statement: jobs and models refer to each other, and references are checked at its end.
with the_jobs as (
    select id from jobs where account_id = :account_id
), the_datasets as (
    select id from datasets where account_id = :account_id
), idle as (
    update workers set job_id = null where job_id in (select id from the_jobs)
), pools as (
    delete from rehearsal_pools where job_id in (select id from the_jobs)
), saved as (
    delete from checkpoints where job_id in (select id from the_jobs)
), billed as (
    delete from ledger where account_id = :account_id
), grown as (
    delete from models where account_id = :account_id
), ended as (
    delete from jobs where account_id = :account_id
), parts as (
    delete from shards where dataset_id in (select id from the_datasets)
), reports as (
    delete from dataset_reports where dataset_id in (select id from the_datasets)
), tokens as (
    delete from dataset_tokens where dataset_id in (select id from the_datasets)
), taken as (
    delete from dataset_uploads where dataset_id in (select id from the_datasets)
), data as (
    delete from datasets where account_id = :account_id
), files as (
    delete from uploads where account_id = :account_id
), keys as (
    delete from api_keys where account_id = :account_id
), hooks as (
    delete from webhook_endpoints where account_id = :account_id
), repeats as (
    delete from idempotency_keys where account_id = :account_id
), pauses as (
    delete from dispatch_pauses where account_id = :account_id
)
delete from accounts where id = :account_id;

-- name: insert_audit(actor, action, target_type, target, reason, before, after, request_id)!
insert into audit_log (actor, action, target_type, target, reason, before, after, request_id)
values (:actor, :action, :target_type, :target, :reason, :before, :after, :request_id);
