-- One request at a time lets S3 put an upload's parts together, and holds no connection meanwhile.

alter table uploads add column completing_until timestamptz;  -- null: none does
