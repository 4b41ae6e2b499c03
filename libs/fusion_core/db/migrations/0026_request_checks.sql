-- What a job was asked for is checked when it is written, not at every heartbeat. Postgres reads the text of all of a
-- table's check constraints anew for each statement that writes a row: those below, about half of the text, made a
-- quarter of what a renewed lease costs (bench/heartbeats.py). Checks of what changes while a job lives stay constraints.

alter table jobs
    drop constraint jobs_type,
    drop constraint jobs_inputs,
    drop constraint jobs_check14,  -- an ingest has a dataset
    drop constraint jobs_key,
    drop constraint jobs_idempotency_key_check,
    drop constraint jobs_request_sha256_check,
    drop constraint jobs_price,
    drop constraint jobs_check11,  -- a price has an estimate
    drop constraint jobs_spec_version_check,
    drop constraint jobs_pool_check,
    drop constraint jobs_gpu_class_check,
    drop constraint jobs_gpu_count_check,
    drop constraint jobs_description_check,
    drop constraint jobs_traceparent_check,
    drop constraint jobs_start_step_check,
    drop constraint jobs_check6;  -- a later start has a job before

-- After the row is written: the generated columns are there, and no other trigger changes it any more. As in a check
-- constraint, what is unknown because it is null is no fault.
create function check_request() returns trigger language plpgsql as $$
declare
    fault text := case
        when (new.type in ('train', 'contract', 'finetune', 'ingest', 'sample')) is false then 'jobs_type'
        when (
            case new.type
                when 'train' then new.dataset_id is not null and num_nonnulls(new.base_model_id, new.source_model_id) = 1
                when 'finetune' then new.dataset_id is not null and num_nonnulls(new.base_model_id, new.source_model_id) = 1
                when 'contract' then new.base_model_id is null and new.source_model_id is not null
                when 'sample' then new.dataset_id is null and num_nonnulls(new.base_model_id, new.source_model_id) = 1
                else new.dataset_id is not null and num_nonnulls(new.base_model_id, new.source_model_id) = 0
            end
        ) is false then 'jobs_inputs'
        when not new.internal and num_nulls(new.idempotency_key, new.request_sha256) > 0 then 'jobs_key'
        when (length(new.idempotency_key) between 1 and 255) is false then 'jobs_idempotency_key'
        when (octet_length(new.request_sha256) = 32) is false then 'jobs_request_sha256'
        when new.internal <> (new.price_version is null) then 'jobs_price'
        when (new.price_version is null) <> (new.estimate is null) then 'jobs_estimate'
        when (new.spec_version > 0) is false then 'jobs_spec_version'
        when (length(new.pool) between 1 and 64) is false then 'jobs_pool'
        when (length(new.gpu_class) between 1 and 64) is false then 'jobs_gpu_class'
        when (new.gpu_count > 0) is false then 'jobs_gpu_count'
        when (length(new.description) between 1 and 1000) is false then 'jobs_description'
        when (new.traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$') is false then 'jobs_traceparent'
        when (new.start_step > 0) <> (new.resumed_from is not null) or new.start_step < 0 then 'jobs_start_step'
    end;
begin
    if fault is not null then
        raise check_violation using constraint = fault, table = 'jobs', schema = tg_table_schema,
            message = format('new row for relation "jobs" violates "%s" of check_request', fault);
    end if;
    return null;
end $$;
create trigger job_request_is_checked after insert or update of
    type, dataset_id, base_model_id, source_model_id, idempotency_key, request_sha256, price_version, estimate,
    spec_version, pool, gpu_class, gpu_count, description, traceparent, start_step, resumed_from
    on jobs for each row execute function check_request();
