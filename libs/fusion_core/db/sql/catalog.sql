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

-- name: insert_upload(id, account_id, filename, content_type, s3_key, expires_s)^
insert into uploads (id, account_id, filename, content_type, s3_key, expires_at)
values (:id, :account_id, :filename, :content_type, :s3_key, now() + make_interval(secs => :expires_s)) returning *;

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
select * from datasets where account_id = :account_id and id = :dataset_id;

-- name: list_datasets(account_id, after, limit)
select * from datasets where account_id = :account_id and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: get_model(account_id, model_id)^
select * from models where account_id = :account_id and id = :model_id and status = 'ready';

-- name: list_models(account_id, after, limit)
select * from models where account_id = :account_id and status = 'ready' and (:after::uuid is null or id < :after)
order by id desc limit :limit;
