-- Which login of the database holds a job's lease: with a login for each worker, none writes to another's jobs
-- (worker_fence.sql). Null: claimed before this column, or not by a worker's login.
alter table jobs add column lease_login oid;
alter table workers add column login oid;

-- As its owner, so that no worker needs to write the counts that bound every account's running jobs.
alter function count_running_job() security definer;
alter function count_running_job() set search_path = public, pg_temp;
