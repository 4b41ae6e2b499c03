-- What the sweep for overdue jobs reads.
create index jobs_deadlines on jobs (deadline_at) where state in ('queued', 'running');

-- Jobs of before have as long as new ones.
update jobs set deadline_at = now() + case when internal then interval '1 day' else interval '14 days' end
where state in ('queued', 'running', 'stopped');
