"""The database that `control_plane.py` measures: accounts, inputs, jobs that wait and jobs that have ended.

Every job is a copy of one that `submit_job` made, spec and all; rows that only have to be there are copied in SQL, and
their foreign keys are not checked, since a million finished jobs are to cost minutes and not hours.
"""

import hashlib
from uuid import UUID, uuid4

import asyncpg
import msgspec
from fusion_core import s3_keys
from fusion_core.db import jobs
from fusion_core.db.pool import Connection, queries
from fusion_core.growth_plan import plan_growth
from fusion_core.job_spec import Hyperparams, TrainSpec
from fusion_core.money import DEFAULT_PRICES, estimate_train
from fusion_core.trainer_protocol import FileEntry, Manifest

POOL = "bench"
ACCOUNTS = 50
BATCH = 20_000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 512,
}
MANIFEST = Manifest((FileEntry("config.json", 10, hashlib.sha256(b"").hexdigest()),))
_COPIED = (
    "account_id, type, request_sha256, spec_version, spec, base_model_id, dataset_id, price_version, estimate,"
    " reserved_microusd, pool"
)
_GROWING = ("jobs", "job_events", "job_metrics", "checkpoints", "models", "ledger", "outbox")


class Account(msgspec.Struct, frozen=True):
    """An account with what its jobs read."""

    id: UUID
    dataset_id: UUID
    base_model_id: UUID


class Size(msgspec.Struct, frozen=True):
    """Rows and bytes on disk, indexes and TOAST included, of one table."""

    rows: int
    bytes: int


async def make_accounts(connection: Connection, count: int = ACCOUNTS) -> list[Account]:
    """`count` accounts that may run as many jobs as they like, over one base model."""
    base_model_id = uuid4()
    await queries.insert_base_model(
        connection,
        id=base_model_id,
        family="llama",
        name="bench",
        version="fp32",
        params=1,
        precision="fp32",
        config=CONFIG,
        s3_prefix=s3_keys.base_model(base_model_id),
        manifest=MANIFEST,
        rehearsal=None,
        content_sha256=base_model_id.hex * 2,
    )
    made = []
    for number in range(count):
        account = await queries.insert_account(connection, name=f"bench {number}")
        dataset = await queries.insert_dataset(connection, account_id=account["id"], name="empty")
        await queries.dataset_ready(
            connection, dataset_id=dataset["id"], shard_count=1, bytes=1, rows=2, heldout_rows=1
        )
        made.append(Account(account["id"], dataset["id"], base_model_id))
    await connection.execute("update accounts set max_running_jobs = 1000000")
    return made


def new_job(account: Account, key: str) -> jobs.NewJob:
    """A train job as POST /jobs resolves it."""
    plan = plan_growth(CONFIG)
    hyperparams = Hyperparams(output_name=f"model-{key}")
    tokens = hyperparams.training_tokens
    return jobs.NewJob(
        account_id=account.id,
        type="train",
        spec=TrainSpec(hyperparams=hyperparams, growth_plan=plan, base_model_name="bench"),
        pool=POOL,
        dataset_id=account.dataset_id,
        base_model_id=account.base_model_id,
        idempotency_key=key,
        request_sha256=b"\0" * 32,
        price_version=1,
        estimate=estimate_train(DEFAULT_PRICES, plan.params_before, plan.params_after, tokens),
    )


async def make_templates(connection: asyncpg.Connection, accounts: list[Account]) -> None:
    """One cancelled job for each account, which the others are copies of."""
    for account in accounts:
        job, _ = await jobs.submit_job(connection, new_job(account, f"template-{account.id}"))
        await jobs.cancel_job(connection, account.id, job.id)
    await connection.execute(
        f"create table bench_templates as select row_number() over (order by id) - 1 as number, {_COPIED} from jobs"  # noqa: S608 - columns from above
    )


async def queue_jobs(connection: asyncpg.Connection, count: int, prefix: str) -> None:
    """`count` queued jobs, spread evenly over the accounts, each with its first event, without a notification."""
    await connection.execute("set session_replication_role = replica")
    for first in range(0, count, BATCH):
        await connection.execute(
            f"with made as (insert into jobs ({_COPIED}, idempotency_key, event_seq)"  # noqa: S608 - columns from above
            f" select {_COPIED}, $3 || n, 1 from generate_series($1::int, $2::int) n"
            " join bench_templates on number = n % (select count(*) from bench_templates) order by n returning id)"
            " insert into job_events (job_id, seq, type, data) select id, 1, 'queued', '{}' from made",
            first,
            min(count, first + BATCH) - 1,
            prefix,
            timeout=300,
        )
    await connection.execute("set session_replication_role = origin")
    await connection.execute("analyze jobs", timeout=300)


async def finish_jobs(connection: asyncpg.Connection, rows: int) -> None:
    """Completed jobs with their models, ledger lines and three events each, until `jobs` has `rows` rows."""
    await connection.execute("set session_replication_role = replica; set synchronous_commit = off")
    missing = rows - await connection.fetchval("select count(*) from jobs")
    while missing > 0:
        batch = min(BATCH, missing)
        await connection.execute(_FINISHED, batch, timeout=300)
        missing -= batch
    await connection.execute("set session_replication_role = origin; reset synchronous_commit")
    await connection.execute("vacuum analyze", timeout=600)


_FINISHED = f"""
with made as (
    insert into jobs ({_COPIED}, idempotency_key, state, event_seq, lease_epoch, attempt_id, started_at, finished_at,
        output_model_id, result)
    select {_COPIED}, gen_random_uuid()::text, 'completed', 3, 1, uuidv7(), now(), now(), uuidv7(), '{{}}'
    from generate_series(1, $1) n
    join bench_templates on number = n % (select count(*) from bench_templates)
    returning id, account_id, output_model_id
), modelled as (
    insert into models (id, account_id, job_id, name, version, params, config, s3_prefix, manifest)
    select output_model_id, account_id, id, 'm' || id, 1, 1, '{{}}', id::text, '{{"files": []}}' from made
), billed as (
    insert into ledger (account_id, job_id, amount_microusd, line_items, tokens, price_version)
    select account_id, id, 1, '[]', 1, 1 from made
)
insert into job_events (job_id, seq, type, data)
select id, seq, 'phase', '{{"phase": "training"}}' from made, generate_series(1, 3) seq
"""  # noqa: S608 - columns from above


async def sizes(connection: asyncpg.Connection) -> dict[str, Size]:
    """Of every table that grows with jobs."""
    found = {}
    for table in _GROWING:
        rows = await connection.fetchval(f"select count(*) from {table}", timeout=120)  # noqa: S608 - a name from above
        taken = await connection.fetchval("select pg_total_relation_size($1::text::regclass)", table)
        found[table] = Size(rows, taken)
    return found
