-- The release before knows no deleted_at and deletes models without it, while both run: their files then go at once.
alter table models drop constraint models_check, add check (deleted_at is null or status = 'deleted');
