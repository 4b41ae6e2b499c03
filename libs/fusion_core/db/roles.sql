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

-- The worker: no table at all. It runs its own statements as functions (worker_statements.py) on the rows that
-- worker_fence.sql lets it write.
