-- The report of reading a dataset's files, and how many rows were left out.

alter table datasets add column skipped_rows bigint not null default 0 check (skipped_rows >= 0);

create table dataset_reports (
    dataset_id uuid primary key references datasets,
    report jsonb not null,
    created_at timestamptz not null default now()
);
