-- Accounts: keys that expire, spend limits, the use of machines, and what an idempotency key has already made.

alter table api_keys add column expires_at timestamptz;

alter table accounts
    add column spend_limit_microusd bigint check (spend_limit_microusd >= 0),  -- of a calendar month (UTC); null: none
    add column spend_warning_microusd bigint check (spend_warning_microusd >= 0);

-- What open jobs may still cost counts against the limit, so the estimate's total is a column.
create function estimate_total(estimate jsonb) returns bigint language sql immutable parallel safe as $$
    select coalesce(sum((item ->> 'amount_microusd')::bigint), 0)::bigint
    from jsonb_array_elements(estimate -> 'line_items') item
$$;
alter table jobs
    add column reserved_microusd bigint generated always as (estimate_total(estimate)) stored,
    add column claimed_at timestamptz,
    add column gpus smallint not null default 0 check (gpus >= 0),
    add column gpu_seconds double precision not null default 0 check (gpu_seconds >= 0);
create index jobs_open_of_account on jobs (account_id) include (reserved_microusd)
    where state in ('queued', 'running', 'stopped');

alter table workers add column gpus smallint not null default 0 check (gpus >= 0);
alter table ledger add column gpu_seconds double precision not null default 0 check (gpu_seconds >= 0);

-- However an attempt ends, its machine time is counted; a lost lease's at most until it expired.
create function count_machine_time() returns trigger language plpgsql as $$
begin
    if old.state = 'running' then
        new.gpu_seconds := old.gpu_seconds + old.gpus
            * greatest(0, extract(epoch from least(now(), old.lease_expires_at) - old.claimed_at));
    else
        new.claimed_at := now();
        new.gpus := coalesce((select gpus from workers where id = new.lease_owner), 0);
    end if;
    return new;
end $$;
create trigger job_machine_time before update of state on jobs
    for each row when ((old.state = 'running') <> (new.state = 'running')) execute function count_machine_time();

-- What a POST with an Idempotency-Key made. Neither secrets nor signed URLs are kept: a replay shows the thing anew.
create table idempotency_keys (
    account_id uuid not null references accounts,
    operation text not null check (length(operation) between 1 and 200),
    key text not null check (length(key) between 1 and 255),
    request_sha256 bytea not null check (octet_length(request_sha256) = 32),
    resource_id uuid,
    created_at timestamptz not null default now(),
    primary key (account_id, operation, key)
);
create index idempotency_keys_by_age on idempotency_keys (created_at);
