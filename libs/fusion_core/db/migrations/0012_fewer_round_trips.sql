-- What lets a completion be one statement, and a batch of events one notification.

-- Versions of one name are numbered one at a time. The lock comes first, and the statement after it sees what was
-- committed meanwhile, which a statement of the caller's own snapshot would not.
create function next_model_version(of_account uuid, of_name text) returns int language plpgsql volatile as $$
begin
    perform pg_advisory_xact_lock(hashtextextended(of_account || '/' || of_name, 0));
    return (select coalesce(max(version), 0) + 1 from models where account_id = of_account and name = of_name);
end $$;

create or replace function notify_job_event() returns trigger language plpgsql as $$
begin
    perform pg_notify('job_event', job_id::text) from (select distinct job_id from appended) as jobs;
    return null;
end $$;
drop trigger job_event_appended on job_events;
create trigger job_event_appended after insert on job_events
    referencing new table as appended for each statement execute function notify_job_event();
