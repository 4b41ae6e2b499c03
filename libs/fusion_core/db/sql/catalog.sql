-- Accounts, keys, prices, base models, uploads, datasets, models.

-- name: insert_account(name)^
insert into accounts (name) values (:name) returning *;

-- name: get_account(account_id)^
select * from accounts where id = :account_id;

-- name: insert_api_key(account_id, name, prefix, secret_sha256, scopes, expires_at)^
insert into api_keys (account_id, name, prefix, secret_sha256, scopes, expires_at)
values (:account_id, :name, :prefix, :secret_sha256, :scopes, :expires_at) returning *;

-- name: api_key_by_hash(secret_sha256)^
select * from api_keys where secret_sha256 = :secret_sha256 and revoked_at is null
    and (expires_at is null or expires_at > now());

-- name: count_live_api_keys(account_id)$
select count(*) from api_keys where account_id = :account_id and revoked_at is null
    and (expires_at is null or expires_at > now());

-- name: ended_api_keys(key_ids)
-- Of these, the keys that are revoked, expired or gone.
select k.id from unnest(:key_ids::uuid[]) as k (id)
where not exists (
    select from api_keys a where a.id = k.id and a.revoked_at is null and (a.expires_at is null or a.expires_at > now())
);

-- name: get_api_key(account_id, key_id)^
select * from api_keys where account_id = :account_id and id = :key_id;

-- name: list_api_keys(account_id, after, limit)
select * from api_keys where account_id = :account_id and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: revoke_api_key(account_id, key_id)^
update api_keys set revoked_at = coalesce(revoked_at, now())
where account_id = :account_id and id = :key_id returning id;

-- name: touch_api_key(key_id)!
update api_keys set last_used_at = now()
where id = :key_id and (last_used_at is null or last_used_at < now() - interval '1 minute');

-- name: current_prices()^
select version, price_table from prices order by version desc limit 1;

-- name: insert_prices(version, price_table)!
insert into prices (version, price_table) values (:version, :price_table) on conflict (version) do nothing;

-- name: insert_base_model(id, family, name, version, params, precision, config, s3_prefix, manifest, rehearsal, content_sha256)^
-- The same content imported twice is one base model.
insert into base_models (id, family, name, version, params, precision, config, s3_prefix, manifest, rehearsal,
    content_sha256)
values (:id, :family, :name, :version, :params, :precision, :config, :s3_prefix, :manifest, :rehearsal,
    :content_sha256)
on conflict (content_sha256) do nothing returning *;

-- name: base_model_by_content(content_sha256)^
select * from base_models where content_sha256 = :content_sha256;

-- name: get_base_model(base_model_id)^
select * from base_models where id = :base_model_id;

-- name: list_base_models(after, limit)
select * from base_models where (:after::uuid is null or id < :after) order by id desc limit :limit;

-- name: insert_upload(id, account_id, filename, content_type, s3_key, size, part_size, multipart_id, expires_s)^
insert into uploads (id, account_id, filename, content_type, s3_key, size, part_size, multipart_id, expires_at)
values (:id, :account_id, :filename, :content_type, :s3_key, :size, :part_size, :multipart_id,
    now() + make_interval(secs => :expires_s))
returning *;

-- name: get_upload(account_id, upload_id)^
select u.*, d.dataset_id from uploads u left join dataset_uploads d on d.upload_id = u.id
where u.account_id = :account_id and u.id = :upload_id;

-- name: keep_multipart(multipart_id, part_size, expires_s, upload_id)^
-- No row: another request has begun it in S3, or it is gone.
update uploads set multipart_id = :multipart_id, part_size = :part_size,
    expires_at = now() + make_interval(secs => :expires_s)
where id = :upload_id and multipart_id is null
returning id;

-- name: take_completing(for_s, upload_id)^
-- No row: another request has taken it, and neither let it go nor run out of time.
update uploads set completing_until = now() + make_interval(secs => :for_s)
where id = :upload_id and (completing_until is null or completing_until < now())
returning id;

-- name: let_completing_go(upload_id)!
update uploads set completing_until = null where id = :upload_id;

-- name: delete_upload(account_id, upload_id)^
delete from uploads where account_id = :account_id and id = :upload_id
    and not exists (select from dataset_uploads d where d.upload_id = id)
returning id;

-- name: storage_of_account(account_id)^
-- Uploads that may still come, and bytes declared or held.
select
    (select count(*) from uploads u where u.account_id = :account_id and u.expires_at > now()
        and not exists (select from dataset_uploads d where d.upload_id = u.id)) as open_uploads,
    (select coalesce(sum(u.size), 0) from uploads u where u.account_id = :account_id and u.expires_at > now()
        and not exists (select from dataset_uploads d where d.upload_id = u.id))::bigint
    + (select coalesce(sum(bytes), 0) from datasets where account_id = :account_id and status = 'ready')::bigint
        as bytes;

-- name: get_uploads(account_id, upload_ids)
select * from uploads where account_id = :account_id and id = any(:upload_ids::uuid[]);

-- name: lock_dataset_name(account_id, name)$
select pg_advisory_xact_lock(hashtextextended('dataset/' || :account_id::uuid || '/' || :name, 0));

-- name: insert_dataset(account_id, name)^
insert into datasets (account_id, name, version)
select :account_id, :name,
    coalesce((select max(version) from datasets where account_id = :account_id and name = :name), 0) + 1
returning *;

-- name: insert_dataset_upload(upload_id, dataset_id, ordinal, size, etag)^
insert into dataset_uploads (upload_id, dataset_id, ordinal, size, etag)
values (:upload_id, :dataset_id, :ordinal, :size, :etag)
on conflict (upload_id) do nothing returning upload_id;

-- name: get_dataset(account_id, dataset_id)^
select * from datasets where account_id = :account_id and id = :dataset_id and status <> 'deleted';

-- name: list_datasets(account_id, after, limit)
select * from datasets
where account_id = :account_id and status <> 'deleted' and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: lock_dataset(account_id, dataset_id)^
select id, status from datasets where account_id = :account_id and id = :dataset_id and status <> 'deleted' for update;

-- name: dataset_in_use(dataset_id)$
select exists (
    select from datasets d join jobs j on j.account_id = d.account_id and j.dataset_id = d.id
    where d.id = :dataset_id and j.finished_at is null
);

-- name: delete_dataset(dataset_id)!
-- Its shards are no longer named and will be pruned; its report, which quotes the rows, goes at once.
with gone as (delete from dataset_reports where dataset_id = :dataset_id)
update datasets set status = 'deleted', error = null where id = :dataset_id;

-- name: get_dataset_report(dataset_id)$
select report from dataset_reports where dataset_id = :dataset_id;

-- name: count_preference_rows(dataset_id)$
select coalesce((report -> 'rows_by_type' ->> 'preference')::bigint, 0)
from dataset_reports where dataset_id = :dataset_id;

-- name: get_dataset_tokens(dataset_id, tokenizer_sha256)^
select tokens, exact from dataset_tokens where dataset_id = :dataset_id and tokenizer_sha256 = :tokenizer_sha256;

-- name: insert_dataset_tokens(dataset_id, tokenizer_sha256, tokens, exact)!
insert into dataset_tokens (dataset_id, tokenizer_sha256, tokens, exact)
values (:dataset_id, :tokenizer_sha256, :tokens, :exact) on conflict do nothing;

-- name: share_inputs(source_model_id, dataset_id)^
-- A job's inputs, held for the rest of the transaction so that nobody deletes them meanwhile.
select
    (select count(*) from (select from models where id = :source_model_id and status = 'ready' for share) m)
        = (:source_model_id::uuid is not null)::int as model_ready,
    (select count(*) from (select from datasets where id = :dataset_id and status <> 'deleted' for share) d)
        = (:dataset_id::uuid is not null)::int as dataset_ready;

-- name: get_model(account_id, model_id)^
select * from models where account_id = :account_id and id = :model_id and status = 'ready';

-- name: list_models(account_id, after, limit)
select * from models where account_id = :account_id and status = 'ready' and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: lock_model(account_id, model_id)^
select * from models where account_id = :account_id and id = :model_id and status = 'ready' for update;

-- name: model_in_use(model_id)$
select exists (select from jobs where source_model_id = :model_id and state in ('queued', 'running', 'stopped'));

-- name: delete_model(model_id)!
-- Its files are pruned after a while; the row stays for the lineage of others.
update models set status = 'deleted', deleted_at = now() where id = :model_id;

-- name: rename_model(name, model_id)!
-- Under the lock of the new name: a name repeats as the next version of it.
update models m set name = :name,
    version = coalesce((select max(version) from models where account_id = m.account_id and name = :name), 0) + 1
where id = :model_id and name <> :name;

-- name: keep_model_until(expires_at, model_id)!
update models set expires_at = :expires_at where id = :model_id;

-- name: lineage_of_model(account_id, model_id)
-- From the model up to the catalog: each model with the job that made it and what that job read.
with recursive line as (
    select m.*, 0 as depth from models m where m.account_id = :account_id and m.id = :model_id
    union all
    select p.*, line.depth + 1 from line join models p on p.id = line.parent_model_id
)
select line.id, line.name, line.version, line.params, line.status, line.job_id, line.parent_model_id,
    line.base_model_id, line.created_at, j.type, j.dataset_id, d.name as dataset_name, d.version as dataset_version,
    b.name as base_model_name
from line join jobs j on j.id = line.job_id
left join datasets d on d.id = j.dataset_id
left join base_models b on b.id = line.base_model_id
order by line.depth limit 100;

-- name: bytes_of_training_shards(dataset_id)$
select coalesce(sum(bytes), 0)::bigint from shards where dataset_id = :dataset_id and split = 'train';

-- name: training_rows_of_dataset(dataset_id)$
select coalesce(sum(rows), 0)::bigint from shards where dataset_id = :dataset_id and split = 'train';
