-- What the pruner asks before it deletes an object: the rows that name it, read at that moment in one snapshot.

-- name: attempt_names(job_id, attempt_id)^
-- Is the attempt still running, and every prefix or key of the job's that a row names. No row: the job is unknown.
select
    j.state = 'running' and j.attempt_id = :attempt_id as live,
    array(
        select s3_prefix from checkpoints where (job_id = j.id or stored_by = j.id) and state = 'ok'
        union all select s3_prefix from models where job_id = j.id and status = 'ready'
        union all select s.s3_key from shards s join datasets d on d.id = s.dataset_id
            where s.dataset_id = j.dataset_id and j.type = 'ingest' and d.status <> 'deleted'
    ) as names
from jobs j where j.id = :job_id;

-- name: upload_is_needed(upload_id)$
-- An upload lives until its time is over and the dataset that took it, if one did, has been read.
select exists (
    select from uploads u
    left join dataset_uploads d on d.upload_id = u.id left join datasets s on s.id = d.dataset_id
    where u.id = :upload_id and (u.expires_at >= now() or s.status = 'validating')
);

-- name: delete_expired_uploads(limit)
-- Uploads that no dataset took in time. One that a dataset took keeps its row, for lineage.
delete from uploads where id in (
    select u.id from uploads u
    where u.expires_at < now() and not exists (select from dataset_uploads d where d.upload_id = u.id)
    order by u.expires_at limit :limit
    for update skip locked
)
returning id;
