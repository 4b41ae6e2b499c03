-- The audit log names actors by their token's name: no two live tokens share one.
create unique index operator_tokens_of_name on operator_tokens (name) where revoked_at is null;
create index audit_log_of_actor on audit_log (actor, id desc);
