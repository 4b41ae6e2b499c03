-- What each service may do in the database, written anew after every migration (roles.py). Groups without a login: an
-- installation makes logins in them. The owner of the tables migrates and runs fusion-admin; no service is the owner.

-- Nobody but the owner makes anything here: neither what shadows our names, nor what fills the disk.
revoke create on schema public from public;
do $$ begin
    execute format('revoke temporary on database %I from public', current_database());
end $$;

revoke all on all tables in schema public from fusion_api, fusion_orchestrator, fusion_worker;

-- The api: what customers may do, and nothing of what operators may.
grant select, insert, update, delete on all tables in schema public to fusion_api;
revoke all on operator_tokens, audit_log, sweeps, schema_migrations from fusion_api;
revoke insert, update, delete on base_models, prices, pools, workers, dispatch_pauses from fusion_api;
revoke insert, delete on accounts, models from fusion_api;
revoke update, delete on ledger, ledger_stubs, job_events, job_metrics from fusion_api;
revoke delete on jobs, api_keys from fusion_api;

-- The orchestrator: every row's end, and operators' actions; it makes no keys and no tokens and does not change the past.
grant select, insert, update, delete on all tables in schema public to fusion_orchestrator;
revoke all on schema_migrations, api_keys, operator_tokens from fusion_orchestrator;
revoke insert, update, delete on prices from fusion_orchestrator;
revoke update, delete on audit_log from fusion_orchestrator;
revoke update on ledger, ledger_stubs, job_events from fusion_orchestrator;
revoke insert on accounts, models from fusion_orchestrator;
grant select (id, account_id, revoked_at), update (revoked_at), delete on api_keys
    to fusion_orchestrator;  -- of accounts that are deleted
grant select, update (last_used_at) on operator_tokens to fusion_orchestrator;

-- The worker: the columns that its statements, functions and triggers name. It deletes nothing but notes of crashes that
-- it made up for, and reads no key, webhook, token, log or event. worker_fence.sql says which rows.
grant select on jobs, claimable, ready_jobs, accounts_running, dispatch_pauses, worker_crashes, base_models,
    dataset_uploads, shards, checkpoints, job_metrics, rehearsal_pools, workers, pools to fusion_worker;
grant select (id, max_running_jobs) on accounts to fusion_worker;
grant select (job_id, seq) on job_events to fusion_worker;
grant select (id, account_id, name, version, status) on datasets to fusion_worker;
grant select (id, s3_key, filename) on uploads to fusion_worker;
grant select (id, account_id, name, version, base_model_id, config, s3_prefix, manifest) on models to fusion_worker;
grant update (
    state, lease_owner, lease_epoch, attempt_id, lease_expires_at, started_at, stopped_at, finished_at, phase,
    last_interruption, not_before, quarantined_at, rung_at, retries, crashes, losses, output_model_id, error, result,
    event_seq, attempt_events, last_checkpoint_step, grown_at
) on jobs to fusion_worker;
grant insert on audit_log to fusion_worker;  -- of drains that it asks for itself; it reads none
grant insert on job_events, job_metrics, checkpoints, models, ledger, outbox, shards, dataset_reports, rehearsal_pools,
    workers, pools to fusion_worker;
grant insert, update, delete on worker_crashes to fusion_worker;
grant update (jobs) on accounts_running to fusion_worker;  -- to lock it
grant update (epoch, point) on job_metrics to fusion_worker;
grant update (state) on checkpoints to fusion_worker;
grant update (status, shard_count, bytes, rows, heldout_rows, skipped_rows, error) on datasets to fusion_worker;
grant update (state, job_id, seen_at, gpu_class, failures, drain_requested_at, drain_reason) on workers to fusion_worker;
grant update (gpu_class, gpu_count) on pools to fusion_worker;
grant update (id) on claimable to fusion_worker;  -- to lock what it shows; nothing can be written through it
