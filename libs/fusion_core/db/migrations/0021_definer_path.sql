-- What a function with its owner's rights names is never looked for among the caller's temporary objects, which come
-- first unless they are put last ("Writing SECURITY DEFINER Functions Safely" in PostgreSQL's manual).
alter function notify_webhook_wanted() set search_path = public, pg_temp;
