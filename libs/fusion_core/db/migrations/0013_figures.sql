-- What /metrics reads of jobs and workers that have not ended, whatever has ended before.
create index jobs_open on jobs (pool, state) include (created_at, quarantined_at)
    where state in ('queued', 'running', 'stopped');
create index workers_here on workers (pool) where state <> 'gone';
