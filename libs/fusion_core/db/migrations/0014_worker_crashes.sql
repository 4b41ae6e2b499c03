-- Which jobs crashed on a worker since it last got anywhere; workers.failures counts their subjects.
create table worker_crashes (
    worker_id uuid not null references workers on delete cascade,
    job_id uuid not null references jobs on delete cascade,
    subject uuid not null,  -- the job's dataset, where it has one: jobs that read the same data are one witness
    code text not null,
    crashed_at timestamptz not null default now(),
    primary key (worker_id, job_id)
);
create index worker_crashes_of_job on worker_crashes (job_id);

-- Whatever the worker gets done clears it: every way to commit a checkpoint or to complete a job, in its own transaction.
create function forgive_worker() returns trigger language plpgsql as $$
begin
    delete from worker_crashes where worker_id = old.lease_owner;
    if found then
        update workers set failures = 0 where id = old.lease_owner;
    end if;
    return null;
end $$;
create trigger worker_got_somewhere after update of state, last_checkpoint_step on jobs
    for each row when (
        old.lease_owner is not null
        and (new.state = 'completed' or new.last_checkpoint_step > old.last_checkpoint_step)
    ) execute function forgive_worker();
