-- Webhooks: endpoints, the fan-out of the outbox, deliveries. Locks are taken endpoint first, then its deliveries.

-- name: lock_webhooks_of_account(account_id)$
-- Endpoints of one account are counted and made one at a time.
select pg_advisory_xact_lock(hashtextextended('webhooks/' || :account_id::uuid, 0));

-- name: count_webhooks(account_id)$
select count(*) from webhook_endpoints where account_id = :account_id;

-- name: insert_webhook(account_id, url, event_types, description)^
insert into webhook_endpoints (account_id, url, event_types, description)
values (:account_id, :url, :event_types, :description) returning *;

-- name: list_webhooks(account_id, after, limit)
select * from webhook_endpoints where account_id = :account_id and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: get_webhook(account_id, webhook_id)^
select * from webhook_endpoints where account_id = :account_id and id = :webhook_id;

-- name: update_webhook(account_id, webhook_id, url, event_types, description, enabled)^
-- Null leaves a value as it is. Enabling forgets the failures.
update webhook_endpoints set
    url = coalesce(:url::text, url),
    event_types = coalesce(:event_types::text[], event_types),
    description = coalesce(:description::text, description),
    enabled = coalesce(:enabled::boolean, enabled),
    disabled_reason = case when :enabled then null when not :enabled then coalesce(disabled_reason, 'customer')
        else disabled_reason end,
    failing_since = case when :enabled then null else failing_since end,
    gave_up_at = case when :enabled then null else gave_up_at end
where account_id = :account_id and id = :webhook_id returning *;

-- name: delete_webhook(account_id, webhook_id)$
delete from webhook_endpoints where account_id = :account_id and id = :webhook_id returning id;

-- name: rotate_webhook_secret(account_id, webhook_id, overlap_s)^
update webhook_endpoints set
    secret_version = secret_version + 1, previous_secret_until = now() + make_interval(secs => :overlap_s)
where account_id = :account_id and id = :webhook_id returning *;

-- name: lock_webhook(account_id, webhook_id)^
select * from webhook_endpoints where account_id = :account_id and id = :webhook_id for update;

-- name: cancel_deliveries(webhook_id)!
-- What was still to be sent to an endpoint that is disabled now.
update webhook_deliveries set state = 'cancelled', next_attempt_at = null, lease_expires_at = null, finished_at = now()
where endpoint_id = :webhook_id and state = 'pending';

-- name: insert_test_delivery(webhook_id, type, data)^
insert into webhook_deliveries (endpoint_id, type, data, occurred_at)
values (:webhook_id, :type, :data, now()) returning *;

-- name: list_deliveries(webhook_id, state, after, limit)
select * from webhook_deliveries
where endpoint_id = :webhook_id and (:state::text is null or state = :state) and (:after::uuid is null or id < :after)
order by id desc limit :limit;

-- name: get_delivery(webhook_id, delivery_id)^
select * from webhook_deliveries where endpoint_id = :webhook_id and id = :delivery_id;

-- name: replay_delivery(webhook_id, delivery_id)^
-- Any state -> pending, due now, with all its attempts; one that is being sent just now stays as it is.
update webhook_deliveries set
    state = 'pending', next_attempt_at = now(), finished_at = null, ring_count = 0, rung_at = null,
    attempts = case when state = 'pending' then attempts else 0 end
where endpoint_id = :webhook_id and id = :delivery_id and (lease_expires_at is null or lease_expires_at < now())
returning *;

-- name: take_outbox(limit)
-- The oldest events that wait for their fan-out, locked; other replicas take others.
select o.job_id, o.seq, o.topic, o.created_at, e.type as event_type, e.created_at as occurred_at, e.data, j.account_id,
    j.type as job_type, j.dataset_id, j.pool, j.created_at as submitted_at, j.reserved_microusd, l.amount_microusd
from outbox o
join job_events e on e.job_id = o.job_id and e.seq = o.seq
join jobs j on j.id = o.job_id
left join ledger l on l.job_id = o.job_id
where o.fanned_out_at is null
order by o.created_at limit :limit
for update of o skip locked;

-- name: webhooks_of_accounts(account_ids)
-- Shared locks: an endpoint is disabled either before this fan-out or after, and then its deliveries are cancelled.
select id, account_id, event_types, created_at from webhook_endpoints
where account_id = any(:account_ids::uuid[]) and enabled
order by id for share;

-- name: insert_deliveries(endpoint_ids, job_ids, seqs, types, payloads, occurred)!
insert into webhook_deliveries (endpoint_id, job_id, seq, type, data, occurred_at)
select d.endpoint_id, d.job_id, d.seq, d.type, d.payload::jsonb, d.occurred_at
from unnest(:endpoint_ids::uuid[], :job_ids::uuid[], :seqs::bigint[], :types::text[], :payloads::text[],
    :occurred::timestamptz[]) as d (endpoint_id, job_id, seq, type, payload, occurred_at)
on conflict (endpoint_id, job_id, seq) do nothing;

-- name: finish_outbox(job_ids, seqs)!
update outbox o set fanned_out_at = now()
from unnest(:job_ids::uuid[], :seqs::bigint[]) as d (job_id, seq) where o.job_id = d.job_id and o.seq = d.seq;

-- name: ring_due_deliveries(per_endpoint, per_account, again_s, limit)
-- Mark deliveries that are due as rung for. So many of one endpoint and of one account are under way at a time, and one
-- of an endpoint that fails: slow receivers delay nobody else. A row that another replica is ringing for is skipped.
with recursive waiting as (  -- the endpoints with anything pending, by skipping through the index from one to the next
    (select endpoint_id from webhook_deliveries where state = 'pending' order by endpoint_id limit 1)
    union all
    select (
        select d.endpoint_id from webhook_deliveries d
        where d.state = 'pending' and d.endpoint_id > waiting.endpoint_id order by d.endpoint_id limit 1
    ) from waiting where waiting.endpoint_id is not null
), candidates as (
    select d.*, row_number() over (
        partition by w.account_id order by d.under_way desc, d.place, d.next_attempt_at
    ) as place_in_account
    from waiting join webhook_endpoints w on w.id = waiting.endpoint_id
    cross join lateral (
        select id, next_attempt_at, row_number() over (order by next_attempt_at, id) as place,
            coalesce(lease_expires_at >= now(), false)
                or coalesce(rung_at >= now() - make_interval(secs => :again_s), false) as under_way
        from webhook_deliveries
        where endpoint_id = w.id and state = 'pending' and next_attempt_at <= now()
        order by next_attempt_at, id limit case when w.failing_since is null then :per_endpoint else 1 end
    ) d
), due as (
    select id from candidates where not under_way and place_in_account <= :per_account
    order by next_attempt_at limit :limit
), locked as (
    select d.id from webhook_deliveries d join due using (id)
    where d.state = 'pending' and d.next_attempt_at <= now()
        and (d.lease_expires_at is null or d.lease_expires_at < now())
        and (d.rung_at is null or d.rung_at < now() - make_interval(secs => :again_s))
    for update of d skip locked
)
update webhook_deliveries d set ring_count = ring_count + 1, rung_at = now()
from locked where d.id = locked.id
returning d.id, d.ring_count;

-- name: claim_delivery(delivery_id, lease_s)^
-- Take a due delivery for one attempt. Of several claimers one gets it; the epoch fences the others' answers.
with taken as (
    select id from webhook_deliveries
    where id = :delivery_id and state = 'pending' and next_attempt_at <= now()
        and (lease_expires_at is null or lease_expires_at < now())
    for update skip locked
)
update webhook_deliveries d set
    attempts = attempts + 1, attempted_at = now(), ring_count = 0, rung_at = null,
    lease_epoch = lease_epoch + 1, lease_expires_at = now() + make_interval(secs => :lease_s)
from taken, webhook_endpoints w
where d.id = taken.id and w.id = d.endpoint_id
returning d.id, d.endpoint_id, d.job_id, d.seq, d.type, d.data, d.occurred_at, d.attempts, d.lease_epoch, w.url,
    (select traceparent from jobs j where j.id = d.job_id) as traceparent,
    w.secret_version, coalesce(w.previous_secret_until > now(), false) as previous_secret_valid;

-- name: note_webhook_success(webhook_id)!
update webhook_endpoints set failing_since = null, gave_up_at = null
where id = :webhook_id and failing_since is not null;

-- name: note_webhook_failure(webhook_id, gave_up, gone)!
update webhook_endpoints set
    failing_since = coalesce(failing_since, now()),
    gave_up_at = case when :gave_up then now() else gave_up_at end,
    enabled = enabled and not :gone,
    disabled_reason = case when :gone then coalesce(disabled_reason, 'gone') else disabled_reason end
where id = :webhook_id and (failing_since is null or :gave_up or :gone);

-- name: disable_exhausted(webhook_id, quiet_s)$
-- A delivery ran out of attempts and nothing has arrived for as long: nobody listens there any more.
update webhook_endpoints set enabled = false, disabled_reason = 'exhausted'
where id = :webhook_id and enabled and not exists (
    select from webhook_deliveries where endpoint_id = :webhook_id and state = 'delivered'
        and finished_at > now() - make_interval(secs => :quiet_s)
) returning id;

-- name: record_attempt(delivery_id, lease_epoch, state, retry_s, response_status, response_snippet, error)$
-- pending -> delivered or failed; or pending, to be tried again. No row: the lease was lost, or the row is gone.
update webhook_deliveries set
    state = :state::text, lease_expires_at = null,
    next_attempt_at = case when :state = 'pending' then now() + make_interval(secs => :retry_s) end,
    finished_at = case when :state <> 'pending' then now() end,
    response_status = :response_status, response_snippet = :response_snippet, error = :error
where id = :delivery_id and lease_epoch = :lease_epoch and state = 'pending'
returning id;

-- name: forget_deliveries(days, limit)!
delete from webhook_deliveries where id in (
    select id from webhook_deliveries where state <> 'pending' and finished_at < now() - make_interval(days => :days)
    order by finished_at limit :limit for update skip locked
);

-- name: forget_outbox(days, limit)!
delete from outbox where (job_id, seq) in (
    select job_id, seq from outbox where fanned_out_at < now() - make_interval(days => :days)
    order by fanned_out_at limit :limit for update skip locked
);
