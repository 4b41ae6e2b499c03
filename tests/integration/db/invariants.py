"""What must always hold, whatever happens to any process: eight rules, looked for in the rows and the objects.

1. At most one attempt of a job can make anything visible at any time.
2. Every acknowledged POST survives any crash; a job always reaches a terminal state or is resumable.
3. Completed jobs and published models are one to one; a published model's manifest matches its objects' hashes.
4. The bill equals the estimate; no step is billed twice.
5. `last_checkpoint_step` never goes back but for a checkpoint marked lost, and its checkpoint can be loaded.
6. Event sequences have no gaps and no repeats, across reconnects and restarts of anything.
7. No account ever sees, names or infers another account's object.
8. No GPU is held for a job that ended longer than a lease.

Nothing here asserts: `violations` and `History.observe` answer what is broken and the evidence for it, so that a
property test after each step and a chaos run beside a working system can both ask. Neither writes.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from fusion_core.db.pool import Connection

LEASE_TTL_S = 20.0
ALL_RULES = range(1, 9)
_CHECKED = """
with checked as materialized (
    select * from jobs where id = any($1::uuid[]) and $2::float8 > 0
), told as (
    select * from checked where history_deleted_at is null
), windowed as (
    select e.*,
        e.attempt_id is null and e.type in
            ('queued', 'claimed', 'interrupted', 'stopped', 'resumed', 'completed', 'failed', 'cancelled') as is_mark
    from told j join job_events e on e.job_id = j.id
), log as materialized (
    select *, max(seq) filter (where is_mark) over up_to as mark_seq,
        count(*) filter (where is_mark and type = 'claimed') over up_to as claims
    from windowed window up_to as (partition by job_id order by seq)
), marks as (
    select * from log where is_mark
)
"""
# What rows say must lie in S3: models that customers can download, shards that jobs can read, checkpoints that a job
# can still resume from.
_NAMED_OBJECTS = """
with checked as (select * from jobs where id = any($1::uuid[]))
select 3 as rule, j.id as job_id, m.s3_prefix || '/' || (f ->> 'rel') as key, f ->> 'sha256' as sha256
from checked j join models m on m.job_id = j.id and m.status = 'ready', jsonb_array_elements(m.manifest -> 'files') f
union all
select 3, j.id, s.s3_key, s.sha256
from checked j join datasets d on d.id = j.dataset_id and d.status = 'ready' join shards s on s.dataset_id = d.id
where j.type = 'ingest'
union all
select 5, j.id, c.s3_prefix || '/' || (f ->> 'rel'), f ->> 'sha256'
from checked j join checkpoints c on c.job_id = j.id and c.state = 'ok', jsonb_array_elements(c.manifest -> 'files') f
where j.state in ('queued', 'running', 'stopped')
"""
_LOOK = """
select j.id, j.state, j.lease_epoch, j.last_checkpoint_step, j.event_seq, j.retries,
    j.finished_at is not null as ended, j.history_deleted_at is not null as forgotten,
    md5(row(j.state, j.lease_epoch, j.attempt_id, j.output_model_id, j.result, j.error, j.finished_at, j.event_seq,
        j.last_checkpoint_step, (select row(l.*) from ledger l where l.job_id = j.id limit 1))::text) as whole,
    (select count(*) from checkpoints c where c.job_id = j.id and c.state = 'lost') as lost,
    (select md5(string_agg(row(e.*)::text, '' order by e.seq)) from job_events e
        where e.job_id = j.id and e.seq <= seen.seq) as told_before,
    (select md5(string_agg(row(e.*)::text, '' order by e.seq)) from job_events e where e.job_id = j.id) as told
from unnest($1::uuid[], $2::bigint[]) seen (id, seq) join jobs j on j.id = seen.id
"""


class Violation(msgspec.Struct, frozen=True):
    """A rule that is broken, by which job, in words, and the values that show it."""

    rule: int
    job_id: UUID
    what: str
    evidence: dict[str, Any]

    def __str__(self) -> str:
        return f"rule {self.rule}, job {self.job_id}: {self.what}: {msgspec.json.encode(self.evidence).decode()}"


def _read_rules() -> dict[int, str]:
    """Rule -> its queries, from the file beside this one."""
    text = (Path(__file__).parent / "invariants.sql").read_text()
    parts = re.split(r"^-- rule (\d)$", text, flags=re.MULTILINE)[1:]
    return {int(rule): sql.strip().rstrip(";") for rule, sql in zip(parts[::2], parts[1::2], strict=True)}


def _compose(rules: Iterable[int]) -> str:
    blocks = [
        f"select {rule}, broken.* from (\n{_RULES[rule]}\n) broken (job_id, what, evidence)"  # noqa: S608 - our own file
        for rule in rules
    ]
    return _CHECKED + "\nunion all\n".join(blocks)


_RULES = _read_rules()
_EVERY_RULE = _compose(ALL_RULES)


async def all_jobs(conn: Connection) -> list[UUID]:
    """Every job there is, for whoever checks a whole database."""
    return [row["id"] for row in await conn.fetch("select id from jobs order by id")]


async def violations(
    conn: Connection,
    job_ids: Collection[UUID],
    *,
    objects: Mapping[str, str] | None = None,
    rules: Collection[int] = ALL_RULES,
    lease_ttl_s: float = LEASE_TTL_S,
) -> list[Violation]:
    """What is broken just now among these jobs, whose creation was acknowledged.

    `objects` are the bucket's: key -> SHA-256 in hex; None leaves the bucket out. Objects are compared with the rows of
    this moment, so a bucket in use must have been listed after them, or be at rest.
    """
    sql = _EVERY_RULE if rules is ALL_RULES else _compose(rules)
    rows = await conn.fetch(sql, list(job_ids), lease_ttl_s)
    found = [Violation(rule, job_id, what, _plain(evidence)) for rule, job_id, what, evidence in rows]
    return found if objects is None else found + await _missing_objects(conn, job_ids, objects, rules)


async def _missing_objects(
    conn: Connection, job_ids: Collection[UUID], objects: Mapping[str, str], rules: Collection[int]
) -> list[Violation]:
    named = await conn.fetch(_NAMED_OBJECTS, list(job_ids))
    return [
        Violation(
            row["rule"],
            row["job_id"],
            "a row names an object that is not there"
            if row["key"] not in objects
            else "an object is not what its row says",
            {"key": row["key"], "sha256": row["sha256"], "found": objects.get(row["key"])},
        )
        for row in named
        if row["rule"] in rules and objects.get(row["key"]) != row["sha256"]
    ]


async def unsettled(conn: Connection, job_ids: Collection[UUID]) -> list[Violation]:
    """Rule 2 once everything has come to rest: jobs that have neither ended nor wait for a person."""
    rows = await conn.fetch(
        "select id, state from jobs where id = any($1::uuid[]) and quarantined_at is null "
        "and state not in ('completed', 'failed', 'cancelled', 'stopped')",
        list(job_ids),
    )
    return [Violation(2, row["id"], "neither ended nor resumable", {"state": row["state"]}) for row in rows]


class History:
    """What earlier looks saw, for the rules about time: what has ended or was told never changes, nothing goes back."""

    def __init__(self) -> None:
        self._seen: dict[UUID, Mapping[str, Any]] = {}

    async def observe(self, conn: Connection, job_ids: Collection[UUID]) -> list[Violation]:
        """Look again: what these jobs have taken back since the last look."""
        seqs = [self._seen[job_id]["event_seq"] if job_id in self._seen else 0 for job_id in job_ids]
        rows = await conn.fetch(_LOOK, list(job_ids), seqs)
        found = [
            Violation(rule, row["id"], what, {"before": str(before[field]), "now": str(row[now])})
            for row in rows
            if (before := self._seen.get(row["id"])) is not None
            for rule, what, field, now in _taken_back(dict(before), dict(row))
        ]
        self._seen.update({row["id"]: row for row in rows})
        return found


def _taken_back(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[tuple[int, str, str, str]]:
    """(rule, what, the column before, the column now) of everything that went back between two looks."""
    if before["ended"] and before["whole"] != now["whole"]:
        yield 2, "a job that had ended has changed", "whole", "whole"
    if now["lease_epoch"] < before["lease_epoch"]:
        yield 1, "the lease epoch went back", "lease_epoch", "lease_epoch"
    if now["last_checkpoint_step"] < before["last_checkpoint_step"] and now["lost"] <= before["lost"]:
        yield 5, "the last checkpoint went back and none was lost", "last_checkpoint_step", "last_checkpoint_step"
    if now["event_seq"] < before["event_seq"]:
        yield 6, "the event sequence went back", "event_seq", "event_seq"
    if now["told_before"] != before["told"] and not now["forgotten"]:
        yield 6, "events that had been told have changed", "told", "told_before"
    if now["retries"] < before["retries"]:
        yield 2, "interruptions were forgotten", "retries", "retries"


def _plain(evidence: Any) -> dict[str, Any]:
    """Connections outside Fusion's pools answer jsonb as text."""
    found: dict[str, Any] = msgspec.json.decode(evidence) if isinstance(evidence, str) else evidence or {}
    return found
