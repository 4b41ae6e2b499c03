-- What a customer reads. Every query names the account.

-- name: get_job(account_id, job_id)^
select * from jobs where account_id = :account_id and id = :job_id and not internal;

-- name: get_job_by_key(account_id, idempotency_key)^
select * from jobs where account_id = :account_id and idempotency_key = :idempotency_key;

-- name: list_jobs(account_id, after, limit)
select * from jobs
where account_id = :account_id and not internal and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: list_events(job_id, after, limit)
select e.seq, e.type, e.data, e.created_at from job_events e
where e.job_id = :job_id and e.seq > :after order by e.seq limit :limit;

-- name: list_metrics(job_id, since_step, limit)
select point from job_metrics where job_id = :job_id and step > :since_step order by step limit :limit;

-- name: latest_metric(job_id)^
select point from job_metrics where job_id = :job_id order by step desc limit 1;

-- name: latest_metric_step(job_id)$
select coalesce(max(step), 0) from job_metrics where job_id = :job_id;
