-- What the person on call steers with: pools and workers that take no more work, deadlines, operators and their log.

-- A kind of machine. Workers make the row when they first register; an operator may declare it before there are any,
-- so that a pool scaled to zero is known too. Jobs are placed by class and count.
create table pools (
    name text primary key check (length(name) between 1 and 64),
    gpu_class text check (length(gpu_class) between 1 and 64),  -- null: no GPU
    gpu_count int not null default 0 check (gpu_count >= 0),
    cordoned_at timestamptz,  -- nothing more is claimed; what runs goes on
    cordon_reason text,
    created_at timestamptz not null default now(),
    check ((gpu_class is null) = (gpu_count = 0)),
    check ((cordoned_at is null) = (cordon_reason is null))
);

alter table workers
    add column gpu_class text,
    add column drain_requested_at timestamptz,  -- the worker gives its job back at a checkpoint and claims no more
    add column drain_reason text,
    add column failures int not null default 0 check (failures >= 0),  -- attempts in a row that crashed on it
    add check ((drain_requested_at is null) = (drain_reason is null));

alter table jobs
    add column gpu_class text check (length(gpu_class) between 1 and 64),  -- what its customer asked for, if anything
    add column gpu_count int check (gpu_count > 0),
    add column deadline_at timestamptz;  -- a queued or running job ends as failed by then

-- Who may use the admin endpoints. A viewer reads; an operator acts, too.
create table operator_tokens (
    id uuid primary key default uuidv7(),
    name text not null check (length(name) between 1 and 200),
    role text not null check (role in ('viewer', 'operator')),
    prefix text not null check (length(prefix) between 8 and 32),
    secret_sha256 bytea not null unique check (octet_length(secret_sha256) = 32),
    created_at timestamptz not null default now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);

-- Every action of an operator, written in the action's own transaction. Rows are never changed.
create table audit_log (
    id uuid primary key default uuidv7(),
    actor text not null,  -- the token's name, or the system's own rule that acted
    action text not null,
    target_type text not null check (target_type in ('job', 'worker', 'pool', 'account', 'dispatch', 'webhook', 'storage')),
    target text not null,
    reason text not null check (length(reason) between 1 and 1000),
    before jsonb,
    after jsonb,
    request_id text,
    created_at timestamptz not null default now()
);
create index audit_log_of_target on audit_log (target_type, target, id desc);

create function forbid_audit_change() returns trigger language plpgsql as $$
begin
    raise exception 'the audit log is only ever appended to' using errcode = 'restrict_violation';
end $$;
create trigger audit_log_is_append_only before update or delete on audit_log
    for each row execute function forbid_audit_change();
