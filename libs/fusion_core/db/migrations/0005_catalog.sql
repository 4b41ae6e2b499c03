-- Uploads in parts, datasets and models that can be deleted, and counts of a dataset's tokens.

alter table uploads
    add column size bigint check (size >= 0),  -- as declared; null: not declared
    add column part_size bigint check (part_size > 0),
    add column multipart_id text,  -- S3's own name of an upload in parts
    add check ((multipart_id is null) = (part_size is null));
create index uploads_of_account on uploads (account_id, expires_at);

alter table datasets drop constraint datasets_status_check;
alter table datasets add constraint datasets_status_check
    check (status in ('validating', 'ready', 'failed', 'deleted'));

alter table models add column expires_at timestamptz;  -- deleted by itself then; null: kept
create index models_by_expiry on models (expires_at) where expires_at is not null and status = 'ready';
create index jobs_open_of_model on jobs (source_model_id) where state in ('queued', 'running', 'stopped');
create index jobs_open_of_dataset on jobs (dataset_id) where state in ('queued', 'running', 'stopped');

create table dataset_tokens (
    dataset_id uuid not null references datasets,
    tokenizer_sha256 text not null check (tokenizer_sha256 ~ '^[0-9a-f]{64}$'),
    tokens bigint not null check (tokens >= 0),
    exact boolean not null,
    primary key (dataset_id, tokenizer_sha256)
);
