-- The spine: every row of the control plane. Checks and partial indexes make illegal rows impossible; money is in
-- micro-dollars; ids are UUID version 7, so tables that grow can be partitioned by month on their leading id.

create table accounts (
    id uuid primary key default uuidv7(),
    name text not null check (length(name) between 1 and 200),
    max_running_jobs int not null default 100 check (max_running_jobs >= 0),
    created_at timestamptz not null default now()
);

create table api_keys (
    id uuid primary key default uuidv7(),
    account_id uuid not null references accounts,
    name text not null check (length(name) between 1 and 200),
    prefix text not null check (length(prefix) between 8 and 32),
    secret_sha256 bytea not null unique check (octet_length(secret_sha256) = 32),
    scopes text[] not null check (
        cardinality(scopes) > 0 and scopes <@ array['train', 'read', 'datasets', 'models', 'billing']
    ),
    created_at timestamptz not null default now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);
create index api_keys_of_account on api_keys (account_id, id desc);

create table prices (
    version int primary key check (version > 0),
    price_table jsonb not null,
    created_at timestamptz not null default now()
);

create table base_models (
    id uuid primary key default uuidv7(),
    family text not null,
    name text not null check (length(name) between 1 and 200),
    version text not null check (length(version) between 1 and 64),
    params bigint not null check (params > 0),
    precision text not null,
    config jsonb not null,
    s3_prefix text not null unique,
    manifest jsonb not null,
    rehearsal jsonb,  -- a manifest of JSONL files below s3_prefix, or null
    content_sha256 text not null unique check (content_sha256 ~ '^[0-9a-f]{64}$'),
    created_at timestamptz not null default now()
);

create table uploads (
    id uuid primary key default uuidv7(),
    account_id uuid not null references accounts,
    filename text not null check (length(filename) between 1 and 255),
    content_type text not null check (length(content_type) between 1 and 255),
    s3_key text not null unique,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    unique (account_id, id)
);
create index uploads_by_expiry on uploads (expires_at);

create table datasets (
    id uuid primary key default uuidv7(),
    account_id uuid not null references accounts,
    name text not null check (length(name) between 1 and 200),
    version int not null check (version > 0),
    status text not null default 'validating' check (status in ('validating', 'ready', 'failed')),
    shard_count int not null default 0 check (shard_count >= 0),
    bytes bigint not null default 0 check (bytes >= 0),
    rows bigint not null default 0 check (rows >= 0),
    heldout_rows bigint not null default 0 check (heldout_rows between 0 and rows),
    error jsonb,
    created_at timestamptz not null default now(),
    unique (account_id, name, version),
    unique (account_id, id),
    check ((status = 'failed') = (error is not null)),
    check (status <> 'ready' or (shard_count > 0 and rows > 0))
);
create index datasets_of_account on datasets (account_id, id desc);

create table dataset_uploads (
    upload_id uuid primary key references uploads,  -- an upload becomes part of one dataset, once
    dataset_id uuid not null references datasets,
    ordinal int not null check (ordinal >= 0),
    size bigint not null check (size >= 0),
    etag text not null,
    unique (dataset_id, ordinal)
);

create table jobs (
    id uuid primary key default uuidv7(),
    account_id uuid not null references accounts,
    type text not null check (type in ('train', 'contract', 'finetune', 'ingest')),
    idempotency_key text check (length(idempotency_key) between 1 and 255),
    request_sha256 bytea check (octet_length(request_sha256) = 32),
    spec_version int not null check (spec_version > 0),
    spec jsonb not null,
    base_model_id uuid references base_models,
    source_model_id uuid,
    dataset_id uuid,
    price_version int references prices,
    estimate jsonb,
    pool text not null check (length(pool) between 1 and 64),
    requirements text[] not null default '{}',
    priority smallint not null default 0,

    -- the state: assigned in transitions.sql and nowhere else
    state text not null default 'queued'
        check (state in ('queued', 'running', 'stopped', 'completed', 'failed', 'cancelled')),
    lease_owner uuid,
    lease_epoch int not null default 0 check (lease_epoch >= 0),
    attempt_id uuid,  -- kept after the attempt is over: "completed by my attempt" must be readable
    lease_expires_at timestamptz,
    cancel_requested_at timestamptz,
    stop_requested_at timestamptz,
    not_before timestamptz not null default now(),
    quarantined_at timestamptz,
    last_interruption text check (last_interruption in ('lost', 'crash', 'drain')),
    retries int not null default 0 check (retries >= 0),
    crashes int not null default 0 check (crashes >= 0),
    losses int not null default 0 check (losses >= 0),
    started_at timestamptz,
    stopped_at timestamptz,
    finished_at timestamptz,
    output_model_id uuid unique,
    error jsonb,
    result jsonb,

    -- progress of the current attempt
    phase text check (phase in ('preparing', 'diagnosing', 'growing', 'training', 'checkpointing', 'exporting')),
    event_seq bigint not null default 0 check (event_seq >= 0),
    attempt_events int not null default 0 check (attempt_events >= 0),
    last_checkpoint_step int not null default 0 check (last_checkpoint_step >= 0),
    grown_at timestamptz,

    -- the doorbell
    ring_count int not null default 0 check (ring_count >= 0),
    rung_at timestamptz,
    created_at timestamptz not null default now(),

    foreign key (account_id, dataset_id) references datasets (account_id, id),
    check ((state = 'running') = (lease_owner is not null)),
    check ((state = 'running') = (lease_expires_at is not null)),
    check (state <> 'running' or (attempt_id is not null and lease_epoch > 0 and started_at is not null)),
    check ((state = 'stopped') = (stopped_at is not null)),
    check ((state in ('completed', 'failed', 'cancelled')) = (finished_at is not null)),
    check ((state = 'failed') = (error is not null)),
    check (type = 'ingest' or (state = 'completed') = (output_model_id is not null)),
    check (type = 'ingest' or (state = 'completed') = (result is not null)),
    check (state <> 'completed' or cancel_requested_at is null),
    check (quarantined_at is null or state in ('queued', 'stopped', 'cancelled')),
    check ((type = 'ingest') = (price_version is null)),
    check ((price_version is null) = (estimate is null)),
    check (type = 'ingest' or (idempotency_key is not null and request_sha256 is not null)),
    check (type <> 'train' or (dataset_id is not null and num_nonnulls(base_model_id, source_model_id) = 1)),
    check (type <> 'ingest' or dataset_id is not null)
);
create unique index jobs_idempotency on jobs (account_id, idempotency_key) where idempotency_key is not null;
create index jobs_queued on jobs (pool, priority desc, created_at) where state = 'queued' and quarantined_at is null;
create index jobs_leases on jobs (lease_expires_at) where state = 'running';
create index jobs_running_of_account on jobs (account_id) where state = 'running';
create index jobs_stopped on jobs (stopped_at) where state = 'stopped';
create index jobs_of_account on jobs (account_id, id desc) where type <> 'ingest';
create unique index jobs_one_ingest_of_dataset on jobs (dataset_id) where type = 'ingest' and state <> 'cancelled';

create table models (
    id uuid primary key default uuidv7(),
    account_id uuid not null references accounts,
    job_id uuid not null unique references jobs,
    name text not null check (length(name) between 1 and 200),
    version int not null check (version > 0),
    params bigint not null check (params > 0),
    base_model_id uuid references base_models,
    parent_model_id uuid references models,
    config jsonb not null,
    s3_prefix text not null unique,
    manifest jsonb not null,
    status text not null default 'ready' check (status in ('ready', 'deleted')),
    created_at timestamptz not null default now(),
    unique (account_id, name, version),
    unique (account_id, id)
);
create index models_of_account on models (account_id, id desc);
alter table jobs
    add foreign key (account_id, source_model_id) references models (account_id, id),
    add foreign key (account_id, output_model_id) references models (account_id, id);

create table shards (
    dataset_id uuid not null references datasets,
    split text not null check (split in ('train', 'heldout')),
    ordinal int not null check (ordinal >= 0),
    s3_key text not null unique,
    bytes bigint not null check (bytes >= 0),
    rows bigint not null check (rows > 0),
    sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
    primary key (dataset_id, split, ordinal)
);

create table job_events (
    job_id uuid not null references jobs,
    seq bigint not null check (seq > 0),
    type text not null check (length(type) between 1 and 64),
    data jsonb not null,
    attempt_id uuid,
    attempt_seq int check (attempt_seq > 0),
    created_at timestamptz not null default now(),
    primary key (job_id, seq),
    check ((attempt_id is null) = (attempt_seq is null))
);
create unique index job_events_once on job_events (job_id, attempt_id, attempt_seq) where attempt_id is not null;

create table job_metrics (
    job_id uuid not null references jobs,
    step int not null check (step > 0),
    epoch int not null,
    point jsonb not null,
    primary key (job_id, step)
);

create table checkpoints (
    job_id uuid not null references jobs,
    step int not null check (step > 0),
    epoch int not null,
    attempt_id uuid not null,
    format_version int not null,
    turn_end boolean not null,
    s3_prefix text not null unique,
    manifest jsonb not null,
    state text not null default 'ok' check (state in ('ok', 'lost')),
    created_at timestamptz not null default now(),
    primary key (job_id, step, epoch)
);

create table workers (
    id uuid primary key,
    name text not null,
    pool text not null,
    spec_version int not null,
    capabilities text[] not null default '{}',
    version text not null,
    state text not null check (state in ('idle', 'busy', 'draining', 'gone')),
    job_id uuid references jobs,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now()
);
create index workers_of_pool on workers (pool, seen_at);

create table ledger (
    id uuid primary key default uuidv7(),
    account_id uuid not null references accounts,
    job_id uuid not null unique references jobs,  -- written once, at the job's terminal state
    amount_microusd bigint not null check (amount_microusd >= 0),
    line_items jsonb not null,
    tokens bigint not null check (tokens >= 0),
    price_version int not null references prices,
    created_at timestamptz not null default now()
);
create index ledger_of_account on ledger (account_id, id desc);

create table outbox (
    job_id uuid not null,
    seq bigint not null,
    topic text not null,
    created_at timestamptz not null default now(),
    delivered_at timestamptz,
    primary key (job_id, seq),
    foreign key (job_id, seq) references job_events (job_id, seq)
);
create index outbox_undelivered on outbox (created_at) where delivered_at is null;

create table dispatch_pauses (
    id uuid primary key default uuidv7(),
    pool text,
    account_id uuid references accounts,
    reason text not null,
    created_at timestamptz not null default now(),
    check (num_nonnulls(pool, account_id) > 0)
);

-- One row: when any orchestrator last swept, and from when on expired leases may be reclaimed.
create table sweeps (
    only_row boolean primary key default true check (only_row),
    last_sweep_at timestamptz not null,
    reclaim_after timestamptz not null
);

-- The one predicate behind every way to claim. Pool and capabilities are the claimer's to compare.
create view claimable as
select
    j.*,
    (select count(*) from jobs r where r.account_id = j.account_id and r.state = 'running') as account_running
from jobs j
join accounts a on a.id = j.account_id
where j.state = 'queued'
    and j.quarantined_at is null
    and j.not_before <= now()
    and j.cancel_requested_at is null
    and j.stop_requested_at is null
    and not exists (
        select from dispatch_pauses p
        where (p.pool is null or p.pool = j.pool) and (p.account_id is null or p.account_id = j.account_id)
    )
    and (select count(*) from jobs r where r.account_id = j.account_id and r.state = 'running') < a.max_running_jobs;

create function notify_job_ready() returns trigger language plpgsql as $$
begin
    perform pg_notify('job_ready', new.pool);
    return null;
end $$;
create trigger job_became_queued after insert or update of state on jobs
    for each row when (new.state = 'queued') execute function notify_job_ready();

create function notify_job_event() returns trigger language plpgsql as $$
begin
    perform pg_notify('job_event', new.job_id::text);
    return null;
end $$;
create trigger job_event_appended after insert on job_events
    for each row execute function notify_job_event();

create function forbid_terminal_change() returns trigger language plpgsql as $$
begin
    raise exception 'job % is %, which never changes', old.id, old.state using errcode = 'restrict_violation';
end $$;
create trigger job_terminal_is_final before update of state, lease_epoch, attempt_id, output_model_id, result, error on jobs
    for each row when (old.state in ('completed', 'failed', 'cancelled')) execute function forbid_terminal_change();
