-- What must always hold, as queries for what breaks it: docs of each rule stand in invariants.py. Every block answers
-- (job_id, what, evidence); all are read in one statement, so in one snapshot, also of a system that is at work.
-- `checked` are the jobs asked for, `told` those whose events are still kept. `log` are their events: each with the number of claims up to it, and the seq of its
-- mark, which is the newest event up to it that tells of the job's state. `marks` are those events themselves.

-- rule 1
select job_id, 'two attempts wrote under one claim', jsonb_build_object('attempts', array_agg(distinct attempt_id))
from log where attempt_id is not null group by job_id, claims having count(distinct attempt_id) > 1
union all
select job_id, 'one attempt wrote under two claims', jsonb_build_object('attempt', attempt_id, 'seqs', array_agg(seq))
from log where attempt_id is not null group by job_id, attempt_id having count(distinct claims) > 1
union all
select l.job_id, 'written while nobody held the job', jsonb_build_object('seq', l.seq, 'type', l.type, 'after', m.type)
from log l left join marks m on m.job_id = l.job_id and m.seq = l.mark_seq
where (l.attempt_id is not null or l.type in ('checkpoint', 'checkpoint_lost')) and m.type is distinct from 'claimed'
union all
select job_id, 'a claim that is not at the next lease epoch', jsonb_build_object('seq', seq, 'claims', claims, 'data', data)
from log where attempt_id is null and type = 'claimed' and (data ->> 'attempt')::int is distinct from claims
union all
select j.id, 'the lease epoch is not the number of claims', jsonb_build_object('epoch', j.lease_epoch)
from told j
where j.lease_epoch <> (select count(*) from marks m where m.job_id = j.id and m.type = 'claimed')
union all
select j.id, 'two attempts at one epoch', jsonb_build_object('epoch', c.epoch)
from checked j join checkpoints c on c.job_id = j.id and c.stored_by is null
group by j.id, j.lease_epoch, j.attempt_id, c.epoch
having count(distinct c.attempt_id) > 1 or c.epoch > j.lease_epoch or c.epoch < 1
    or (c.epoch = j.lease_epoch and bool_or(c.attempt_id <> j.attempt_id))
union all
select j.id, 'metrics of an epoch to come', jsonb_build_object('step', m.step, 'epoch', m.epoch)
from checked j join job_metrics m on m.job_id = j.id where m.epoch > j.lease_epoch
union all
select j.id, 'published from the prefix of another attempt', jsonb_build_object('prefix', p.name)
from checked j join (
    select job_id, s3_prefix as name from models
    union all
    select i.id, s.s3_key from jobs i join shards s on s.dataset_id = i.dataset_id where i.type = 'ingest'
) p on p.job_id = j.id
where p.name not like 'jobs/' || j.id || '/' || j.lease_epoch || '-' || j.attempt_id || '/%'
union all
select j.id, 'a checkpoint outside the prefix of its attempt', jsonb_build_object('prefix', c.s3_prefix)
from checked j join checkpoints c on c.job_id = j.id and c.stored_by is null
where c.s3_prefix not like 'jobs/' || j.id || '/' || c.epoch || '-' || c.attempt_id || '/%';

-- rule 2
select asked.id, 'an acknowledged job is gone', '{}'::jsonb
from unnest($1::uuid[]) asked (id)
where not exists (select from jobs where jobs.id = asked.id)
    and not exists (select from ledger_stubs s where s.job_id = asked.id)  -- left of a deleted account's job
union all
select j.id, 'the state is not what the events say', jsonb_build_object('state', j.state, 'event', m.type)
from told j
left join lateral (select type from marks where job_id = j.id order by seq desc limit 1) m on true
where case j.state
    when 'queued' then m.type is null or m.type not in ('queued', 'interrupted', 'resumed')
    when 'running' then m.type is distinct from 'claimed'
    else m.type is distinct from j.state end
union all
select job_id, 'a job went on after its end', jsonb_build_object('seq', seq, 'type', type, 'after', before)
from (select *, lag(type) over (partition by job_id order by seq) as before from marks) m
where before in ('completed', 'failed', 'cancelled')
union all
select id, 'completed though a cancel was pending', jsonb_build_object('cancel_requested_at', cancel_requested_at)
from checked where state = 'completed' and cancel_requested_at is not null
union all
select id, 'a queued job waits without an end', jsonb_build_object('not_before', not_before)
from checked where state = 'queued' and not_before > now() + interval '1 hour'
union all
select held.id, 'an account''s count of running jobs, which bounds its claims, is not how many run',
    jsonb_build_object('account', held.account_id, 'counted', r.jobs, 'running', now_running.jobs)
from (select distinct on (account_id) account_id, id from checked order by account_id, id) held
left join accounts_running r on r.account_id = held.account_id
cross join lateral (
    select count(*) as jobs from jobs j where j.account_id = held.account_id and j.state = 'running'
) now_running
where r.jobs is distinct from now_running.jobs
union all
select id, 'a failure without a reason', error from checked
where state = 'failed' and (coalesce(error ->> 'code', '') = '' or coalesce(error ->> 'message', '') = '')
union all
select e.job_id, 'an event that customers subscribe to has no outbox row', jsonb_build_object('seq', e.seq, 'type', e.type)
from checked j join job_events e on e.job_id = j.id and e.attempt_id is null
where e.created_at > now() - interval '29 days'  -- rows that were fanned out are kept for 30
    and case j.type
        when 'sample' then false
        when 'ingest' then e.type in ('completed', 'failed', 'cancelled')
        else e.type in ('claimed', 'checkpoint', 'completed', 'failed', 'cancelled', 'stopped') end
    and not exists (select from outbox o where o.job_id = e.job_id and o.seq = e.seq);

-- rule 3
select j.id, 'completed jobs and models are not one to one',
    jsonb_build_object('state', j.state, 'output_model_id', j.output_model_id, 'models', array_agg(m.id))
from checked j left join models m on m.job_id = j.id
where not j.internal
group by j.id, j.state, j.output_model_id
having count(m.id) <> (j.state = 'completed')::int or bool_or(m.id is distinct from j.output_model_id)
union all
select j.id, 'a model without files', jsonb_build_object('model', m.id)
from checked j join models m on m.job_id = j.id where jsonb_array_length(m.manifest -> 'files') = 0
union all
select j.id, 'the dataset is not what became of its ingest job', jsonb_build_object(
    'job', j.state, 'dataset', d.status, 'shard_count', d.shard_count, 'shards', s.shards)
from checked j join datasets d on d.id = j.dataset_id
cross join lateral (select count(*) as shards from shards where dataset_id = d.id) s
where j.type = 'ingest' and d.status <> 'deleted' and (
    d.status <> case j.state when 'completed' then 'ready' when 'failed' then 'failed' when 'cancelled' then 'failed'
        else 'validating' end
    or s.shards <> case j.state when 'completed' then d.shard_count else 0 end
)
union all
select j.id, 'a sample job and its rehearsal pool are not one to one', jsonb_build_object('job', j.state)
from checked j
where j.type = 'sample' and (j.state = 'completed') <> exists (select from rehearsal_pools p where p.job_id = j.id);

-- rule 4
select j.id, 'not one ledger line at the end', jsonb_build_object('state', j.state, 'lines', count(l.id))
from checked j left join ledger l on l.job_id = j.id
group by j.id, j.state, j.price_version
having count(l.id) <> (j.price_version is not null and j.state in ('completed', 'failed', 'cancelled'))::int
union all
select j.id, 'the bill is not the estimate', jsonb_build_object('estimate', e.amount, 'ledger', l.amount_microusd)
from checked j join ledger l on l.job_id = j.id
cross join lateral (
    select sum((item ->> 'amount_microusd')::bigint) as amount from jsonb_array_elements(j.estimate -> 'line_items') item
) e
where j.state = 'completed' and l.amount_microusd <> e.amount
union all
select j.id, 'a failed job pays', jsonb_build_object('ledger', l.amount_microusd)
from checked j join ledger l on l.job_id = j.id where j.state = 'failed' and (l.amount_microusd <> 0 or l.tokens <> 0)
union all
select j.id, 'a cancelled job pays neither more nor less than its growth and its committed steps',
    jsonb_build_object('owed', o.amount, 'tokens_owed', o.tokens, 'ledger', l.amount_microusd, 'tokens', l.tokens)
from checked j join ledger l on l.job_id = j.id
cross join lateral (select j.spec -> 'hyperparams' as h) spec
cross join lateral (
    select greatest(0, j.last_checkpoint_step - j.start_step) * (h ->> 'seq_len')::bigint * (h ->> 'batch_size')::bigint
        * coalesce((h ->> 'gradient_accumulation')::bigint, 1) as tokens
) t
cross join lateral (
    select t.tokens, coalesce(sum(case item ->> 'label'
        when 'training' then ceil(t.tokens * (item ->> 'rate_microusd')::numeric / 1000000)
        when 'growth' then (item ->> 'amount_microusd')::numeric * (j.grown_at is not null)::int
        else 0 end), 0) as amount
    from jsonb_array_elements(j.estimate -> 'line_items') item
) o
where j.state = 'cancelled' and (l.amount_microusd, l.tokens) is distinct from (o.amount, o.tokens)
union all
select j.id, 'steps are billed that the job does not train', jsonb_build_object('tokens', l.tokens, 'priced', item -> 'qty')
from checked j join ledger l on l.job_id = j.id, jsonb_array_elements(j.estimate -> 'line_items') item
where item ->> 'label' = 'training' and (
    l.tokens > (item ->> 'qty')::bigint or (j.state = 'completed' and l.tokens <> (item ->> 'qty')::bigint)
);

-- rule 5
select j.id, 'the last checkpoint is not the newest readable one',
    jsonb_build_object('last', j.last_checkpoint_step, 'newest', coalesce(max(c.step), 0))
from checked j left join checkpoints c on c.job_id = j.id and c.state = 'ok'
where j.finished_at is null  -- those of jobs that have ended are deleted in time
group by j.id, j.last_checkpoint_step having j.last_checkpoint_step <> coalesce(max(c.step), 0)
union all
select j.id, 'a checkpoint was lost without an event', jsonb_build_object('step', c.step, 'epoch', c.epoch)
from told j join checkpoints c on c.job_id = j.id and c.state = 'lost'
where not exists (
    select from log l where l.job_id = j.id and l.type = 'checkpoint_lost' and (l.data ->> 'step')::int = c.step
)
union all
select j.id, 'checkpoints and their events are not one to one', jsonb_build_object('rows', c.steps, 'events', e.steps)
from told j
cross join lateral (
    select array_agg(step order by step) as steps from checkpoints where job_id = j.id and stored_by is null
) c
cross join lateral (
    select array_agg((data ->> 'step')::int order by (data ->> 'step')::int) as steps from log
    where job_id = j.id and type = 'checkpoint' and attempt_id is null
) e
where c.steps is distinct from e.steps;

-- rule 6
select j.id, 'the events have a gap or a repeat',
    jsonb_build_object('event_seq', j.event_seq, 'events', count(l.seq), 'first', min(l.seq), 'last', max(l.seq))
from told j left join log l on l.job_id = j.id
group by j.id, j.event_seq
having count(l.seq) <> j.event_seq or j.event_seq < 1 or min(l.seq) <> 1 or max(l.seq) <> j.event_seq
union all
select job_id, 'the events of an attempt are out of order', jsonb_build_object('seq', seq, 'number', attempt_seq)
from (
    select *, lag(attempt_seq) over (partition by job_id, attempt_id order by seq) as before
    from log where attempt_id is not null
) e where before >= attempt_seq
union all
select j.id, 'the attempt''s last number is not that of its last event',
    jsonb_build_object('attempt_events', j.attempt_events, 'last', coalesce(max(l.attempt_seq), 0))
from checked j left join log l on l.job_id = j.id and l.attempt_id = j.attempt_id
where j.state = 'running'
group by j.id, j.attempt_events having j.attempt_events <> coalesce(max(l.attempt_seq), 0)
union all
select j.id, 'a webhook tells of an event otherwise than the event', jsonb_build_object('delivery', d.id, 'seq', d.seq)
from (select distinct account_id from checked) a
join webhook_endpoints w on w.account_id = a.account_id join webhook_deliveries d on d.endpoint_id = w.id
join told j on j.id = d.job_id
left join job_events e on e.job_id = d.job_id and e.seq = d.seq
where e.seq is null or e.created_at <> d.occurred_at or (d.data ->> 'seq')::bigint is distinct from d.seq;

-- rule 7
select j.id, 'belongs to another account', jsonb_build_object('what', o.what, 'id', o.id, 'account', o.account_id)
from checked j join lateral (
    select 'dataset' as what, id, account_id from datasets where id = j.dataset_id
    union all select 'source model', id, account_id from models where id = j.source_model_id and j.type <> 'sample'
    union all select 'output model', id, account_id from models where id = j.output_model_id or job_id = j.id
    union all select 'ledger line', id, account_id from ledger where job_id = j.id
    union all select 'resumed from', id, account_id from jobs where id = j.resumed_from
    union all select 'checkpoint', s.id, s.account_id from checkpoints c join jobs s on s.id = c.stored_by
        where c.job_id = j.id
    union all select 'parent model', p.id, p.account_id from models m join models p on p.id = m.parent_model_id
        where m.job_id = j.id
    union all select 'upload', u.id, u.account_id from dataset_uploads d join uploads u on u.id = d.upload_id
        where d.dataset_id = j.dataset_id
    union all select 'sampled model', id, account_id from models where id = j.source_model_id and j.type = 'sample'
) o on o.account_id <> j.account_id
union all
select j.id, 'sent to a webhook of another account', jsonb_build_object('delivery', d.id, 'account', w.account_id)
from checked j
join outbox o on o.job_id = j.id
join webhook_deliveries d on d.job_id = o.job_id and d.seq = o.seq
join webhook_endpoints w on w.id = d.endpoint_id
where w.account_id <> j.account_id
union all
select j.id, 'reads the prefix of another job', jsonb_build_object('prefix', c.s3_prefix)
from checked j join checkpoints c on c.job_id = j.id
where c.s3_prefix not like 'jobs/' || coalesce(c.stored_by, c.job_id) || '/%';

-- rule 8
select id, 'a lease is longer than a lease', jsonb_build_object('lease_expires_at', lease_expires_at)
from checked where state = 'running' and lease_expires_at > now() + make_interval(secs => $2::float8)
union all
select j.id, 'a worker is at work on a job that it no longer has',
    jsonb_build_object('worker', w.id, 'seen_at', w.seen_at, 'ended_at', m.created_at)
from checked j join workers w on w.job_id = j.id and w.state = 'busy'
cross join lateral (
    select created_at from marks where job_id = j.id and type <> 'claimed' order by seq desc limit 1
) m
where j.lease_owner is distinct from w.id and w.seen_at > m.created_at + make_interval(secs => $2::float8);
