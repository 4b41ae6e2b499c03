-- The direct commands of fusion-admin write the audit log, too: keys, operator tokens, models and the schema are its
-- targets.
alter table audit_log drop constraint audit_log_target_type_check;
alter table audit_log add constraint audit_log_target_type_check check (target_type in (
    'job', 'worker', 'pool', 'account', 'dispatch', 'webhook', 'storage', 'key', 'operator_token', 'model',
    'base_model', 'database'
));
