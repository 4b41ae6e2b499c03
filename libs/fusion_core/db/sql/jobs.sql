-- What a customer reads. Every query names the account.

-- name: get_job^
select * from jobs where account_id = :account_id and id = :job_id and type <> 'ingest';

-- name: get_job_by_key^
select * from jobs where account_id = :account_id and idempotency_key = :idempotency_key;

-- name: list_jobs
select * from jobs
where account_id = :account_id and type <> 'ingest' and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: list_events
select e.seq, e.type, e.data, e.created_at from job_events e
where e.job_id = :job_id and e.seq > :after order by e.seq limit :limit;

-- name: list_metrics
select point from job_metrics where job_id = :job_id and step > :since_step order by step limit :limit;

-- name: latest_metric^
select point from job_metrics where job_id = :job_id order by step desc limit 1;

-- name: latest_metric_step$
select coalesce(max(step), 0) from job_metrics where job_id = :job_id;

-- name: get_ledger_of_job^
select * from ledger where account_id = :account_id and job_id = :job_id;
