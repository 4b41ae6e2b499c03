-- What a session of a worker may write, by whichever statement; written anew after every migration (roles.py). It runs its
-- statements as functions with their owner's rights (worker_statements.py), so the session's login is asked for.
-- The worker's own statements name job, epoch and attempt and are fenced by them; those are no secrets among workers.
-- This fence asks for the login, so it parts workers that have logins of their own.

-- In plpgsql, because a function in SQL is parsed and planned anew for each trigger of each statement: 8 us against 1.
create or replace function by_worker() returns boolean language plpgsql stable as $$
begin
    return pg_has_role(session_user, 'fusion_worker', 'usage')
        and not pg_has_role(session_user, 'fusion_orchestrator', 'usage');  -- the owner, and superusers, are of every role
end $$;

create or replace function login_oid() returns oid language sql stable as $$
    select quote_ident(session_user)::regrole::oid
$$;

-- The job runs by a claim of this login, or this transaction has just ended it or given it back.
create or replace function holds_job(of_job uuid) returns boolean language sql volatile as $$
    select exists (
        select from jobs j where j.id = of_job and (
            j.state = 'running' and coalesce(j.lease_login, login_oid()) = login_oid()
            or j.xmin = pg_current_xact_id()::xid
        )
    )
$$;

create or replace function refuse_worker(what text) returns void language plpgsql as $$
begin
    raise exception 'a worker may not change %', what using errcode = 'insufficient_privilege';
end $$;

-- jobs: claims a queued job at its next epoch, or writes to a running one within its own attempt.
create or replace function keep_workers_fenced() returns trigger language plpgsql as $$
declare
    computed constant text[] := '{event_seq, internal, start_model_id}';
begin
    if new.lease_expires_at > now() + interval '1 day' then
        perform refuse_worker(format('job %s: nobody could take it back', old.id));
    end if;
    if old.state = 'running' and new.lease_epoch = old.lease_epoch and new.attempt_id = old.attempt_id
        and (new.state <> 'running' or new.lease_owner = old.lease_owner)
        and coalesce(old.lease_login, login_oid()) = login_oid() then
        return new;
    end if;
    if old.state = 'queued' and new.state = 'running' and new.lease_epoch = old.lease_epoch + 1
        and new.attempt_id is distinct from old.attempt_id and old.quarantined_at is null then
        new.lease_login := login_oid();
        return new;
    end if;
    -- The event that tells of an end is numbered after it, in the same transaction. Generated columns come later.
    if new.event_seq = old.event_seq + 1 and old.xmin = pg_current_xact_id()::xid
        and to_jsonb(new) - computed = to_jsonb(old) - computed then
        return new;
    end if;
    perform refuse_worker(format('job %s from %s to %s', old.id, old.state, new.state));
end $$;
create or replace trigger job_changes_of_workers before update on jobs
    for each row when (by_worker()) execute function keep_workers_fenced();

-- Rows of a job: after the statement, since the claim or the end that entitles to them may be part of it.
create or replace function keep_to_held_job() returns trigger language plpgsql as $$
begin
    if not holds_job(new.job_id) then
        perform refuse_worker(format('%s of job %s, which it does not hold', tg_table_name, new.job_id));
    end if;
    return null;
end $$;
create or replace trigger rows_of_workers after insert on job_events
    for each row when (by_worker()) execute function keep_to_held_job();
create or replace trigger rows_of_workers after insert on outbox
    for each row when (by_worker()) execute function keep_to_held_job();
create or replace trigger rows_of_workers after insert on rehearsal_pools
    for each row when (by_worker()) execute function keep_to_held_job();
create or replace trigger rows_of_workers after insert or update on job_metrics
    for each row when (by_worker()) execute function keep_to_held_job();
create or replace trigger rows_of_workers after insert or update on checkpoints
    for each row when (by_worker()) execute function keep_to_held_job();
create or replace trigger rows_of_workers after insert on models
    for each row when (by_worker()) execute function keep_to_held_job();
create or replace trigger rows_of_workers after insert on ledger
    for each row when (by_worker()) execute function keep_to_held_job();

-- A checkpoint and a model name objects of their own job alone.
create or replace function keep_to_own_objects() returns trigger language plpgsql as $$
begin
    if not starts_with(new.s3_prefix, format('jobs/%s/', new.job_id)) then
        perform refuse_worker(format('%s to name objects of another job', tg_table_name));
    end if;
    return null;
end $$;
create or replace trigger objects_of_workers after insert on checkpoints
    for each row when (by_worker()) execute function keep_to_own_objects();
create or replace trigger objects_of_workers after insert on models
    for each row when (by_worker()) execute function keep_to_own_objects();

create or replace function keep_to_own_account() returns trigger language plpgsql as $$
begin
    if not exists (select from jobs j where j.id = new.job_id and j.account_id = new.account_id) then
        perform refuse_worker(format('%s of another account', tg_table_name));
    end if;
    return null;
end $$;
create or replace trigger accounts_of_workers after insert on models
    for each row when (by_worker()) execute function keep_to_own_account();

-- A line of the ledger is what the job's end makes of its frozen estimate: all, nothing, or what was done until then.
create or replace function keep_to_estimate() returns trigger language plpgsql as $$
begin
    if not exists (
        select from jobs j where j.id = new.job_id and j.account_id = new.account_id and not j.internal
            and j.price_version = new.price_version and case j.state
                when 'completed' then new.amount_microusd = j.reserved_microusd
                when 'failed' then new.amount_microusd = 0
                when 'cancelled' then new.amount_microusd <= j.reserved_microusd
                else false
            end
    ) then
        perform refuse_worker(format('the bill of job %s', new.job_id));
    end if;
    return null;
end $$;
create or replace trigger bills_of_workers after insert on ledger
    for each row when (by_worker()) execute function keep_to_estimate();

-- A dataset is written by the job that reads it.
create or replace function keep_to_held_dataset() returns trigger language plpgsql as $$
declare
    its_id constant uuid := to_jsonb(new) ->> case tg_table_name when 'datasets' then 'id' else 'dataset_id' end;
begin
    if not exists (
        select from datasets d join jobs j on j.account_id = d.account_id and j.dataset_id = d.id
        where d.id = its_id and j.type = 'ingest' and holds_job(j.id)
    ) then
        perform refuse_worker(format('%s of dataset %s, which it does not read', tg_table_name, its_id));
    end if;
    return null;
end $$;
create or replace trigger rows_of_workers after insert on shards
    for each row when (by_worker()) execute function keep_to_held_dataset();
create or replace trigger rows_of_workers after insert on dataset_reports
    for each row when (by_worker()) execute function keep_to_held_dataset();
create or replace trigger rows_of_workers after update on datasets
    for each row when (by_worker()) execute function keep_to_held_dataset();

-- workers: its own row, but no drain undone, which is the operator's; of others' rows it takes crashes back.
create or replace function keep_to_own_worker() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        new.login := login_oid();
        return new;
    end if;
    if coalesce(old.login, login_oid()) = login_oid()
        and (old.drain_requested_at is null or new.drain_requested_at = old.drain_requested_at) then
        return new;
    end if;
    if new.failures <= old.failures and to_jsonb(new) - 'failures' = to_jsonb(old) - 'failures' then
        return new;
    end if;
    perform refuse_worker(format('worker %s', old.id));
end $$;
create or replace trigger rows_of_workers before insert or update on workers
    for each row when (by_worker()) execute function keep_to_own_worker();

create or replace function keep_to_own_crashes() returns trigger language plpgsql as $$
begin
    if not exists (select from workers w where w.id = new.worker_id and coalesce(w.login, login_oid()) = login_oid()) then
        perform refuse_worker(format('the crashes of worker %s', new.worker_id));
    end if;
    return null;
end $$;
create or replace trigger rows_of_workers after insert or update on worker_crashes
    for each row when (by_worker()) execute function keep_to_own_crashes();

create or replace function keep_to_own_pool() returns trigger language plpgsql as $$
begin
    if not exists (select from workers w where w.pool = new.name and coalesce(w.login, login_oid()) = login_oid()) then
        perform refuse_worker(format('pool %s', new.name));
    end if;
    return null;
end $$;
create or replace trigger rows_of_workers after insert or update on pools
    for each row when (by_worker()) execute function keep_to_own_pool();

-- Counts of running jobs are no table of a worker's any more: count_running_job writes them for its session.
drop trigger if exists rows_of_workers on accounts_running;
drop function if exists keep_counts();

create or replace function keep_to_rule() returns trigger language plpgsql as $$
begin
    if (new.actor, new.action, new.target_type) <> ('rule:failing-worker', 'drain_worker', 'worker') then
        perform refuse_worker('the audit log as somebody else');
    end if;
    return new;
end $$;
create or replace trigger lines_of_workers before insert on audit_log
    for each row when (by_worker()) execute function keep_to_rule();
