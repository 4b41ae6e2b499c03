-- Workers on which one job after the other crashes.

-- name: insert_worker_crash(worker_id, job_id, subject, code)!
-- Once a job. A worker that never registered has no row to blame.
insert into worker_crashes (worker_id, job_id, subject, code)
select id, :job_id, :subject, :code from workers where id = :worker_id
on conflict do nothing;

-- name: struck_elsewhere(job_id, worker_id, code)$
select exists (
    select from worker_crashes where job_id = :job_id and worker_id <> :worker_id and code = :code
);

-- name: count_failures(worker_id)$
update workers set failures = (select count(distinct subject) from worker_crashes where worker_id = :worker_id)
where id = :worker_id
returning failures;

-- name: drain_by_rule(reason, worker_id)^
-- No row: it drains already.
update workers set drain_requested_at = now(), drain_reason = :reason
where id = :worker_id and drain_requested_at is null
returning name;

-- name: crashes_of_worker(worker_id)
select job_id, code from worker_crashes where worker_id = :worker_id order by crashed_at desc;

-- name: take_back_crashes(job_id)!
-- The job crashes wherever it runs. The workers are locked in one order, so that two such jobs never wait for each other.
with blamed as (
    select id from workers where id in (select worker_id from worker_crashes where job_id = :job_id)
    order by id for update
), taken_back as (
    delete from worker_crashes where job_id = :job_id and worker_id in (select id from blamed)
    returning worker_id
)
update workers w set failures = (
    select count(distinct c.subject) from worker_crashes c where c.worker_id = w.id and c.job_id <> :job_id
)
where w.id in (select worker_id from taken_back);
