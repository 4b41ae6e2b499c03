-- Contraction, fine-tuning and the internal sample job, with the rehearsal pools that sample jobs make.

-- Owns the jobs that serve every customer: one pool for each base model of the catalog.
insert into accounts (id, name, max_running_jobs)
values ('00000000-0000-7000-8000-000000000000', 'operator', 1000000);

alter table jobs
    add column internal boolean not null generated always as (type in ('ingest', 'sample')) stored,
    drop constraint jobs_type_check,
    drop constraint jobs_check6,   -- output model
    drop constraint jobs_check7,   -- result
    drop constraint jobs_check10,  -- price
    drop constraint jobs_check12,  -- idempotency key
    drop constraint jobs_check13;  -- inputs of a train job
alter table jobs
    add constraint jobs_type check (type in ('train', 'contract', 'finetune', 'ingest', 'sample')),
    add constraint jobs_output check (internal or (state = 'completed') = (output_model_id is not null)),
    add constraint jobs_result check (internal or (state = 'completed') = (result is not null)),
    add constraint jobs_price check (internal = (price_version is null)),
    add constraint jobs_key check (internal or (idempotency_key is not null and request_sha256 is not null)),
    add constraint jobs_inputs check (
        case type
            when 'train' then dataset_id is not null and num_nonnulls(base_model_id, source_model_id) = 1
            when 'finetune' then dataset_id is not null and num_nonnulls(base_model_id, source_model_id) = 1
            when 'contract' then base_model_id is null and source_model_id is not null
            when 'sample' then dataset_id is null and num_nonnulls(base_model_id, source_model_id) = 1
            else num_nonnulls(base_model_id, source_model_id) = 0
        end
    );

drop index jobs_of_account;
create index jobs_of_account on jobs (account_id, id desc) where not internal;

-- A base is sampled once; only a sample job that failed makes room for another.
create unique index jobs_one_sample_of_base_model on jobs (base_model_id)
    where type = 'sample' and state not in ('failed', 'cancelled');
create unique index jobs_one_sample_of_model on jobs (source_model_id)
    where type = 'sample' and state not in ('failed', 'cancelled');

-- Text sampled from a base at temperature 1. A catalog model's pool serves every customer, a model's only its account.
create table rehearsal_pools (
    job_id uuid primary key references jobs,
    base_model_id uuid unique references base_models,
    model_id uuid unique references models,
    manifest jsonb not null,  -- of JSONL files below pool/ in the base's own prefix, each named by its SHA-256
    created_at timestamptz not null default now(),
    check (num_nonnulls(base_model_id, model_id) = 1)
);

-- As before, and: a job waits for its base's rehearsal pool while that is being sampled, for half an hour at most;
-- after that its trainer samples a small one for itself.
drop view claimable;
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
    and (
        j.internal or j.created_at < now() - interval '30 minutes'
        or not exists (
            select from jobs s
            where s.type = 'sample' and s.state in ('queued', 'running') and s.quarantined_at is null
                and (s.base_model_id = j.base_model_id or s.source_model_id = j.source_model_id)
        )
    )
    and (select count(*) from jobs r where r.account_id = j.account_id and r.state = 'running') < a.max_running_jobs;
