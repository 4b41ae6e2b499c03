-- The person on call: who may, what there is to see, and the log of what was done. Transitions are in transitions.sql.

-- name: insert_operator_token(name, role, prefix, secret_sha256)^
-- No row: a live token has this name, and the audit log tells actors apart by it.
insert into operator_tokens (name, role, prefix, secret_sha256)
values (:name, :role, :prefix, :secret_sha256)
on conflict do nothing returning *;

-- name: list_operator_tokens(limit)
select * from operator_tokens order by id desc limit :limit;

-- name: revoke_operator_token(token_id)^
update operator_tokens set revoked_at = coalesce(revoked_at, now()) where id = :token_id returning *;

-- name: operator_token_by_hash(secret_sha256)^
select * from operator_tokens where secret_sha256 = :secret_sha256 and revoked_at is null;

-- name: touch_operator_token(token_id)!
update operator_tokens set last_used_at = now() where id = :token_id;

-- name: list_audit(actor, target_type, target, after, limit)
select * from audit_log
where (:actor::text is null or actor = :actor) and (:target_type::text is null or target_type = :target_type)
    and (:target::text is null or target = :target) and (:after::uuid is null or id < :after)
order by id desc limit :limit;
