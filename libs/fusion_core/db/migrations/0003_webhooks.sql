-- Webhooks: where customers want events sent, and what became of each. Secrets are derived, never stored.

create table webhook_endpoints (
    id uuid primary key default uuidv7(),
    account_id uuid not null references accounts,
    url text not null check (length(url) between 1 and 2048),
    event_types text[] not null check (cardinality(event_types) > 0),
    description text not null default '' check (length(description) <= 500),
    enabled boolean not null default true,
    disabled_reason text check (disabled_reason in ('customer', 'gone', 'exhausted')),
    secret_version int not null default 1 check (secret_version > 0),
    previous_secret_until timestamptz,  -- until then the version before signs too
    failing_since timestamptz,          -- the first failure after the last success
    gave_up_at timestamptz,             -- a delivery ran out of attempts, and none has succeeded since
    created_at timestamptz not null default now(),
    check (enabled = (disabled_reason is null)),
    check (previous_secret_until is null or secret_version > 1)
);
create index webhook_endpoints_of_account on webhook_endpoints (account_id, id desc);

create table webhook_deliveries (
    id uuid primary key default uuidv7(),
    endpoint_id uuid not null references webhook_endpoints on delete cascade,
    job_id uuid,  -- with seq, the event; null for a test
    seq bigint,
    type text not null check (length(type) between 1 and 64),
    data jsonb not null,
    occurred_at timestamptz not null,
    state text not null default 'pending' check (state in ('pending', 'delivered', 'failed', 'cancelled')),
    attempts int not null default 0 check (attempts >= 0),
    next_attempt_at timestamptz default now(),
    lease_epoch int not null default 0 check (lease_epoch >= 0),
    lease_expires_at timestamptz,
    ring_count int not null default 0 check (ring_count >= 0),  -- rings since the last claim
    rung_at timestamptz,
    attempted_at timestamptz,
    response_status int,
    response_snippet text check (length(response_snippet) <= 4096),
    error text check (length(error) <= 500),
    finished_at timestamptz,
    created_at timestamptz not null default now(),
    unique (endpoint_id, job_id, seq),
    check ((job_id is null) = (seq is null)),
    check ((state = 'pending') = (next_attempt_at is not null)),
    check ((state = 'pending') = (finished_at is null)),
    check (state = 'pending' or lease_expires_at is null)
);
create index webhook_deliveries_of_endpoint on webhook_deliveries (endpoint_id, id desc);
create index webhook_deliveries_pending on webhook_deliveries (endpoint_id, next_attempt_at, id) where state = 'pending';
create index webhook_deliveries_finished on webhook_deliveries (finished_at) where state <> 'pending';

-- An outbox row is done when it has become deliveries; what becomes of those they say themselves.
alter table outbox rename column delivered_at to fanned_out_at;
alter index outbox_undelivered rename to outbox_waiting;
create index outbox_fanned_out on outbox (fanned_out_at) where fanned_out_at is not null;

create function notify_webhook_due() returns trigger language plpgsql as $$
begin
    perform pg_notify('webhook_due', '');
    return null;
end $$;
create trigger outbox_written after insert on outbox for each statement execute function notify_webhook_due();
create trigger webhook_delivery_written after insert or update of next_attempt_at on webhook_deliveries
    for each row when (new.next_attempt_at <= now()) execute function notify_webhook_due();
