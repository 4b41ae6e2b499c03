-- A transaction that notifies holds one lock of the whole server until its commit is on disk. Claims, progress and
-- completions therefore notify nobody who does not wait: streams of events look by themselves, and webhooks are told of
-- outbox rows for which somebody has an endpoint. The release before looks, too, every two seconds.
drop trigger job_event_appended on job_events;
drop function notify_job_event();

-- As its owner: a worker, who writes outbox rows, may not read where customers want them sent.
create function notify_webhook_wanted() returns trigger language plpgsql security definer set search_path = public as $$
begin
    if exists (
        select from written w join jobs j on j.id = w.job_id
        join webhook_endpoints e on e.account_id = j.account_id and e.enabled
        where w.topic not like 'internal.%'
    ) then
        perform pg_notify('webhook_due', '');
    end if;
    return null;
end $$;
drop trigger outbox_written on outbox;
create trigger outbox_written after insert on outbox
    referencing new table as written for each statement execute function notify_webhook_wanted();
