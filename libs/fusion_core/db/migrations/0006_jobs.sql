-- Jobs: labels and a description, lists that stay quick under any filter, checkpoints with names of their own, and jobs
-- that go on from a checkpoint of another.

create function account_labels(account_id uuid, labels jsonb) returns text[] language sql immutable parallel safe as $$
    select array(select account_id::text || ' ' || key || ' ' || value from jsonb_each_text(labels))
$$;

alter table jobs
    add column labels jsonb not null default '{}' check (jsonb_typeof(labels) = 'object'),
    add column description text check (length(description) between 1 and 1000),
    add column start_model_id uuid generated always as (coalesce(base_model_id, source_model_id)) stored,
    add column start_step int not null default 0 check (start_step >= 0),  -- trained and billed by resumed_from
    add column resumed_from uuid references jobs,
    add check ((start_step > 0) = (resumed_from is not null));

-- One index for each filter of a list, each in the list's own order.
create index jobs_by_state on jobs (account_id, state, id desc) where not internal;
create index jobs_by_type on jobs (account_id, type, id desc) where not internal;
create index jobs_by_start_model on jobs (account_id, start_model_id, id desc) where not internal;
create index jobs_by_dataset on jobs (account_id, dataset_id, id desc) where not internal;
create index jobs_by_label on jobs using gin (account_labels(account_id, labels)) where labels <> '{}';
create index jobs_resumed on jobs (resumed_from) where resumed_from is not null;

-- How long jobs of a pool take, for the expected start of those that wait.
create index jobs_completed_of_pool on jobs (pool, finished_at desc) where state = 'completed' and not internal;

alter table checkpoints
    add column id uuid not null default uuidv7() unique,
    add column stored_by uuid references jobs,  -- the job below whose prefix it lies; null: its own
    drop constraint checkpoints_s3_prefix_key;
create unique index checkpoints_stored_once on checkpoints (s3_prefix) where stored_by is null;
create index checkpoints_of_job on checkpoints (job_id, id desc);
create index checkpoints_of_others on checkpoints (stored_by) where stored_by is not null;
