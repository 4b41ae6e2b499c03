-- What goes when it is old: each rule counts what it would take, and takes it in bites. docs/operations.md has the rules.

-- name: count_expired_uploads()$
select count(*) from uploads u
where u.expires_at < now() and not exists (select from dataset_uploads d where d.upload_id = u.id);

-- name: delete_expired_uploads(limit)
-- Uploads that no dataset took in time. One that a dataset took keeps its row, for lineage.
delete from uploads where id in (
    select u.id from uploads u
    where u.expires_at < now() and not exists (select from dataset_uploads d where d.upload_id = u.id)
    order by u.expires_at limit :limit
    for update skip locked
)
returning id;

-- name: count_superseded_checkpoints(keep, hours)$
select count(*) from jobs j cross join lateral (
    select c.turn_end, c.created_at from checkpoints c where c.job_id = j.id and c.state = 'ok'
    order by c.step desc, c.epoch desc offset :keep
) c
where j.finished_at is null and not c.turn_end
    and c.created_at < now() - make_interval(hours => :hours);

-- name: delete_superseded_checkpoints(keep, hours, limit)
-- Of a job that may go on: all but its newest ones and the end of each turn.
update checkpoints o set state = 'deleted'
from jobs j cross join lateral (
    select c.step, c.epoch, c.turn_end, c.created_at from checkpoints c where c.job_id = j.id and c.state = 'ok'
    order by c.step desc, c.epoch desc offset :keep limit :limit
) c
where j.finished_at is null and not c.turn_end
    and c.created_at < now() - make_interval(hours => :hours)
    and o.job_id = j.id and o.step = c.step and o.epoch = c.epoch
returning o.job_id;

-- name: count_checkpoints_of_ended_jobs(days)$
select count(*) from checkpoints c join jobs j on j.id = c.job_id
where c.state = 'ok' and j.finished_at < now() - make_interval(days => :days);

-- name: delete_checkpoints_of_ended_jobs(days, limit)
-- A job that has ended never reads its checkpoints again; those that another job took over are that job's own rows.
update checkpoints set state = 'deleted' where (job_id, step, epoch) in (
    select c.job_id, c.step, c.epoch from checkpoints c join jobs j on j.id = c.job_id
    where c.state = 'ok' and j.finished_at < now() - make_interval(days => :days)
    limit :limit
)
returning job_id;

-- name: count_old_histories(days)$
select count(*) from jobs where finished_at < now() - make_interval(days => :days) and history_deleted_at is null;

-- name: old_histories(days, limit)
-- Jobs that ended long ago, but for those with an event that a webhook still waits for.
select id from jobs j
where finished_at < now() - make_interval(days => :days) and history_deleted_at is null
    and not exists (select from outbox o where o.job_id = j.id)
order by finished_at limit :limit;

-- name: delete_histories(job_ids)!
with events as (
    delete from job_events where job_id = any(:job_ids::uuid[])
), metrics as (
    delete from job_metrics where job_id = any(:job_ids::uuid[])
)
update jobs set history_deleted_at = now() where id = any(:job_ids::uuid[]);

-- name: count_expired_models()$
select count(*) from models where status = 'ready' and expires_at < now();

-- name: delete_expired_models(limit)
update models set status = 'deleted', deleted_at = now() where id in (
    select m.id from models m
    where m.status = 'ready' and m.expires_at < now()
        and not exists (select from jobs j where j.source_model_id = m.id and j.state in ('queued', 'running', 'stopped'))
    order by m.expires_at limit :limit for update skip locked
)
returning id;

-- name: restore_model(model_id, days)^
-- Within the time for which the files of a deleted model are kept.
update models set status = 'ready', deleted_at = null, expires_at = null
where id = :model_id and deleted_at > now() - make_interval(days => :days)
returning id, name, version;
