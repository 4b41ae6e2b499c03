-- What each service may do in the database, written anew after every migration (roles.py). Groups without a login: an
-- installation makes logins in them. The owner of the tables migrates and runs fusion-admin; no service is the owner.

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
-- it made up for, and reads no key, webhook, token or log.
grant select on jobs, claimable, ready_jobs, accounts_running, dispatch_pauses, worker_crashes, models, base_models, datasets, dataset_uploads, uploads, shards, checkpoints,
    rehearsal_pools, workers, pools, job_metrics, job_events to fusion_worker;
grant select (id, max_running_jobs) on accounts to fusion_worker;
grant update (
    state, lease_owner, lease_epoch, attempt_id, lease_expires_at, started_at, stopped_at, finished_at, phase,
    last_interruption, not_before, quarantined_at, rung_at, retries, crashes, losses, output_model_id, error, result,
    event_seq, attempt_events, last_checkpoint_step, grown_at
) on jobs to fusion_worker;
grant insert on audit_log to fusion_worker;  -- of drains that it asks for itself; it reads none
grant insert on job_events, job_metrics, checkpoints, models, ledger, outbox, shards, dataset_reports, rehearsal_pools,
    workers, pools to fusion_worker;
grant insert, update, delete on worker_crashes to fusion_worker;
grant update (jobs) on accounts_running to fusion_worker;
grant update (epoch, point) on job_metrics to fusion_worker;
grant update (state) on checkpoints to fusion_worker;
grant update (status, shard_count, bytes, rows, heldout_rows, skipped_rows, error) on datasets to fusion_worker;
grant update on workers to fusion_worker;
grant update (gpu_class, gpu_count) on pools to fusion_worker;
grant update (id) on claimable to fusion_worker;  -- to lock what it shows; nothing can be written through it

-- A worker's session claims a queued job at its next epoch, or writes to a running one within its attempt. The
-- statements are fenced by themselves; this holds whatever statement a worker that was taken over makes up.
create or replace function keep_workers_fenced() returns trigger language plpgsql as $$
declare
    computed constant text[] := '{event_seq, internal, start_model_id}';
begin
    if old.state = 'running' and new.lease_epoch = old.lease_epoch and new.attempt_id = old.attempt_id
        and (new.state <> 'running' or new.lease_owner = old.lease_owner) then
        return new;
    end if;
    if old.state = 'queued' and new.state = 'running' and new.lease_epoch = old.lease_epoch + 1
        and new.attempt_id is distinct from old.attempt_id then
        return new;
    end if;
    -- The event that tells of an end is numbered after it, in the same transaction. Generated columns come later.
    if new.event_seq = old.event_seq + 1 and to_jsonb(new) - computed = to_jsonb(old) - computed then
        return new;
    end if;
    raise exception 'a worker may not change job % from % to %', old.id, old.state, new.state
        using errcode = 'insufficient_privilege';
end $$;
create or replace trigger job_changes_of_workers before update on jobs for each row
    when (
        pg_has_role(current_user, 'fusion_worker', 'usage')
        and not pg_has_role(current_user, 'fusion_orchestrator', 'usage')  -- the owner, and superusers, are of every role
    )
    execute function keep_workers_fenced();
