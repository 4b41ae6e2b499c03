-- The request that made a job, as W3C Trace Context names it: attempts and webhooks go on from there.
alter table jobs add column traceparent text
    check (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$');
