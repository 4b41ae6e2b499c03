-- Heartbeats write no index (a heap-only tuple update): what they change is indexed nowhere, and a page keeps room for
-- the next version of its rows. Measured by bench/heartbeats.py.

drop index jobs_leases;  -- those that have expired are found among jobs_running_of_account: no more than there are workers
alter table jobs set (fillfactor = 75);

drop index workers_of_pool;
create index workers_of_pool on workers (pool) where state <> 'gone';
alter table workers set (fillfactor = 50);

-- Postgres computes generated columns anew in every update of a table with a BEFORE UPDATE trigger, so this one is
-- written once, by insert_job.
alter table jobs alter column reserved_microusd drop expression;
