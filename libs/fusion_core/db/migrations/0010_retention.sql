-- What goes when it is old, and accounts that are deleted.

alter table checkpoints
    drop constraint checkpoints_state_check,
    add constraint checkpoints_state_check check (state in ('ok', 'lost', 'deleted'));
create index checkpoints_kept on checkpoints (job_id, step desc, epoch desc) include (turn_end, created_at)
    where state = 'ok';

alter table jobs add column history_deleted_at timestamptz;  -- when its events and metrics were
create index jobs_with_history on jobs (finished_at) where finished_at is not null and history_deleted_at is null;

alter table models add column deleted_at timestamptz;  -- its files stay for a while, so that it can be restored
update models set deleted_at = now() where status = 'deleted';
alter table models add check ((status = 'deleted') = (deleted_at is not null));
create index models_deleted on models (deleted_at) where deleted_at is not null;

alter table accounts add column deleted_at timestamptz;  -- its rows go once its last job has ended
create index accounts_deleted on accounts (deleted_at) where deleted_at is not null;

-- What is left of a deleted account: one line a job, with nothing in it that the customer wrote. The pruner knows by
-- it that whatever lies in the store under the job's id is garbage.
create table ledger_stubs (
    job_id uuid primary key,
    account_id uuid not null,
    type text not null,
    amount_microusd bigint not null check (amount_microusd >= 0),
    tokens bigint not null check (tokens >= 0),
    price_version int references prices,
    billed_at timestamptz,  -- null: it had no price
    created_at timestamptz not null default now()
);
create index ledger_stubs_of_account on ledger_stubs (account_id, job_id);

-- What refers to a row is looked for when that row is deleted.
create index jobs_of_model on jobs (source_model_id) where source_model_id is not null;
create index models_of_parent on models (parent_model_id) where parent_model_id is not null;
create index workers_of_job on workers (job_id) where job_id is not null;
drop index jobs_by_dataset;
create index jobs_by_dataset on jobs (account_id, dataset_id, id desc) where dataset_id is not null;
