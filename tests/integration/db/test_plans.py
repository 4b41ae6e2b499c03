"""No query on the hot path reads a whole table: the plans that Postgres makes on a table that has grown.

A quarter of a minute fills 40,000 jobs and 120,000 events, metrics and checkpoints; from some thousand rows on the
choice between an index and the whole table is the same as at a million, since a sequential scan grows with the table
and an index scan with the answer. `FUSION_PLAN_JOBS=1000000 pytest tests/integration/db/test_plans.py --timeout 3000`
looks at a million. The planner's costs are untouched.
"""

import json
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest
from fusion_core.db.pool import queries

JOBS = int(os.environ.get("FUSION_PLAN_JOBS", "40000"))
GROWING = {
    "jobs",
    "job_events",
    "job_metrics",
    "checkpoints",
    "ledger",
    "models",
    "datasets",
    "api_keys",
    "outbox",
    "webhook_endpoints",
    "webhook_deliveries",
    "workers",
}
# What serves POST /jobs, GET /jobs/{id}, lists and events; heartbeats, checkpoints and claims.
OF_CUSTOMERS = (
    "api_key_by_hash", "touch_api_key", "get_job", "get_job_by_key", "get_job_with_progress", "queue_of_job",
    "list_jobs", "list_events", "event_seqs", "list_metrics", "latest_metric_step", "sample_metrics",
    "list_checkpoints", "get_checkpoint", "lock_account", "spend_of_month", "list_ledger", "share_inputs",
    "get_base_model", "get_model", "get_dataset", "lock_job",
)  # fmt: skip
OF_WORKERS = (
    "claim_job", "due_rings", "renew_lease", "get_claim", "get_held", "lock_attempt", "append_event",
    "append_attempt_events", "commit_checkpoint", "readable_checkpoints", "request_cancel", "request_stop",
    "complete_training", "complete_job", "requeue_interrupted_job", "release_job", "insert_ledger", "ring_jobs",
    "expired_leases", "expired_stops", "overdue_jobs", "base_of_job", "checkpoint_age", "worker_seen",
)  # fmt: skip
OF_WEBHOOKS = (
    "list_webhooks", "get_webhook", "list_deliveries", "get_delivery", "replay_delivery", "take_outbox",
    "webhooks_of_accounts", "finish_outbox", "ring_due_deliveries", "claim_delivery", "record_attempt",
)  # fmt: skip
OF_METRICS = (
    "jobs_by_state", "pool_demand", "holds", "overdue_leases", "checkpoint_ages", "workers_by_state", "outbox_depth",
    "webhook_backlog",
)  # fmt: skip
OF_OPERATORS = (
    "operator_token_by_hash", "admin_overview", "list_pauses", "admin_jobs", "admin_job", "last_events",
    "attempts_of_job", "admin_leases", "admin_workers", "admin_queues", "webhook_endpoints_behind",
    "undelivered", "list_audit",
)  # fmt: skip
# What names one job by its id, whatever its state: renewals, reports and ends of attempts, wishes of customers.
OF_ONE_JOB = (
    "renew_lease", "request_cancel", "request_stop", "complete_training", "complete_job", "fail_job",
    "cancel_running_job", "stop_running_job", "requeue_interrupted_job", "release_job", "cancel_idle_job",
    "stop_queued_job", "resume_job", "retry_queued_job", "fail_idle_job", "get_claim", "lock_attempt", "lock_expired",
    "lock_overdue", "lock_job", "append_event", "append_attempt_events", "commit_checkpoint",
)  # fmt: skip
FILL = """
set session_replication_role = replica;  -- neither triggers nor foreign keys: rows alone
insert into accounts (name) select 'account ' || n from generate_series(1, 50) n;
insert into api_keys (account_id, name, prefix, secret_sha256, scopes)
    select id, 'key', 'fusion_live_x', decode(md5(id::text || n) || md5(n::text || id), 'hex'), '{read}'
    from accounts, generate_series(1, 100) n;
insert into jobs (account_id, type, idempotency_key, request_sha256, spec_version, spec, base_model_id, dataset_id,
    price_version, estimate, pool, state, labels, lease_epoch, attempt_id, lease_owner, lease_expires_at, started_at,
    finished_at, output_model_id, result)
select a.id, case when n % 50 = 0 then 'finetune' else 'train' end, 'key-' || n, decode(repeat('00', 32), 'hex'), 1,
    jsonb_build_object('pad', repeat('x', 400)), uuidv7(), uuidv7(), 1, '{"line_items": []}', 'h100x1', s.state,
    case when n % 10 = 0 then jsonb_build_object('team', 't' || n % 200) else '{}' end, 1, uuidv7(),
    case when s.state = 'running' then uuidv7() end, case when s.state = 'running' then now() end, now(),
    case when s.state = 'completed' then now() end, case when s.state = 'completed' then uuidv7() end,
    case when s.state = 'completed' then '{}'::jsonb end
from generate_series(1, $JOBS) n
cross join lateral (
    select case when n % 100 = 0 then 'queued' when n % 100 = 1 then 'running' else 'completed' end as state
) s
join lateral (select id from accounts order by id offset n % 50 limit 1) a on true;
insert into accounts_running
    select a.id, count(j.id) from accounts a left join jobs j on j.account_id = a.id and j.state = 'running'
    group by a.id on conflict do nothing;
insert into job_events (job_id, seq, type, data) select id, n, 'phase', '{}' from jobs, generate_series(1, 3) n;
insert into job_metrics (job_id, step, epoch, point)
    select id, n, 1, '{"step": 1, "loss": 1.0}' from jobs, generate_series(1, 3) n;
insert into checkpoints (job_id, step, epoch, attempt_id, format_version, turn_end, s3_prefix, manifest)
    select id, n, 1, attempt_id, 1, false, id::text || n, '{"files": []}' from jobs, generate_series(1, 3) n;
insert into ledger (account_id, job_id, amount_microusd, line_items, tokens, price_version)
    select account_id, id, 1, '[]', 1, 1 from jobs where state = 'completed';
insert into models (account_id, job_id, name, version, params, config, s3_prefix, manifest)
    select account_id, id, 'm' || id, 1, 1, '{}', id::text, '{}' from jobs where state = 'completed';
insert into datasets (account_id, name, version) select id, 'd' || n, 1 from accounts, generate_series(1, 200) n;
insert into webhook_endpoints (account_id, url, event_types)
    select id, 'https://example.com/' || n, '{job.completed}' from accounts, generate_series(1, 1000) n;
insert into outbox (job_id, seq, topic, fanned_out_at)
    select id, 1, 'job.completed', case when state <> 'running' then now() end from jobs;
insert into webhook_deliveries (endpoint_id, job_id, seq, type, data, occurred_at, state, next_attempt_at, finished_at)
    select w.id, j.id, 1, 'job.completed', '{}', now(),
        case when j.state = 'running' then 'pending' else 'delivered' end,
        case when j.state = 'running' then now() end, case when j.state <> 'running' then now() end
    from jobs j
    join lateral (select id from webhook_endpoints w where w.account_id = j.account_id limit 1) w on true;
insert into workers (id, name, pool, spec_version, version, state)
    select uuidv7(), 'w' || n, 'h100x1', 1, '0', case when n % 100 = 0 then 'idle' else 'gone' end
    from generate_series(1, 10000) n;
set session_replication_role = origin;
"""


@pytest.fixture
async def filled(world: Any) -> AsyncIterator[Any]:
    """A connection to a database that has grown."""
    async with world.pool.acquire() as connection:
        await connection.execute(FILL.replace("$JOBS", str(JOBS)), timeout=max(120, JOBS / 500))
        await connection.execute("analyze", timeout=max(60, JOBS / 1000))
        yield connection


def scans(plan: dict[str, Any]) -> Iterator[str]:
    """The tables that a plan reads as a whole."""
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for inner in plan.get("Plans", ()):
        yield from scans(inner)


def indexes_of_jobs(plan: dict[str, Any]) -> Iterator[str]:
    """What a plan finds its jobs by."""
    if plan.get("Relation Name") == "jobs" and plan["Node Type"] != "ModifyTable":
        yield plan.get("Index Name", plan["Node Type"])
    for inner in plan.get("Plans", ()):
        yield from indexes_of_jobs(inner)


async def whole_tables(connection: Any, sql: str, *arguments: Any) -> set[str]:
    """Of one call, planned for its arguments."""
    (explained,) = json.loads(await connection.fetchval(f"explain (format json) {sql}", *arguments))
    return set(scans(explained["Plan"])) & GROWING


async def plan_of_any_call(connection: Any, name: str) -> Any:
    """A named query's generic plan, which a connection that has prepared it comes to use."""
    await connection.execute(f"prepare of_any_call as {getattr(queries, name).sql}")
    values = ", ".join(["null"] * len(queries.driver_adapter.var_sorted[name]))
    explained = await connection.fetchval(
        f"explain (format json) execute of_any_call {f'({values})' if values else ''}"
    )
    await connection.execute("deallocate of_any_call")
    return json.loads(explained)[0]["Plan"]


async def test_no_hot_query_reads_a_whole_table(filled: Any) -> None:
    await filled.execute("set plan_cache_mode = force_generic_plan")
    names = (*OF_CUSTOMERS, *OF_WORKERS, *OF_WEBHOOKS, *OF_METRICS, *OF_OPERATORS)
    faults = {name: set(scans(await plan_of_any_call(filled, name))) & GROWING for name in names}
    await filled.execute("reset plan_cache_mode")
    assert {name: found for name, found in faults.items() if found} == {}
    assert await whole_tables(filled, "select * from jobs where description = 'x'") == {"jobs"}, "the search finds one"

    account: UUID = await filled.fetchval("select id from accounts order by id offset 1 limit 1")
    order = queries.driver_adapter.var_sorted["find_jobs"]
    running = {"state": "running", "phases": [""], "interrupted": [False]}
    filters: list[dict[str, Any]] = [
        {},
        {"type": "finetune"},
        running,
        {"dataset_id": account},
        {"start_model_id": account},
        {"labels": [f"{account} team t10"]},
        {"labels": [f"{account} team t10"], "type": "train"} | running,
    ]
    for wanted in filters:
        named = {"account_id": account, "limit": 50} | wanted
        arguments = [named.get(name) for name in order]
        assert await whole_tables(filled, queries.find_jobs.sql, *arguments) == set(), wanted


async def test_one_job_is_found_by_its_id_though_nothing_was_open_when_that_was_planned(world: Any) -> None:
    """Else a worker's connection, whose plans stay for hours, reads all open jobs at each heartbeat."""
    async with world.pool.acquire() as connection:
        ended = (
            FILL[: FILL.index("insert into job_events")].replace("n % 100 = 0", "false").replace("n % 100 = 1", "false")
        )
        await connection.execute(ended.replace("$JOBS", "20000"), timeout=120)
        await connection.execute("set session_replication_role = origin; analyze", timeout=60)
        assert await connection.fetchval("select count(*) from jobs where finished_at is null") == 0
        await connection.execute("set plan_cache_mode = force_generic_plan")
        found = {name: set(indexes_of_jobs(await plan_of_any_call(connection, name))) for name in OF_ONE_JOB}
        await connection.execute("reset plan_cache_mode")
    assert {name: by for name, by in found.items() if by != {"jobs_pkey"}} == {}
