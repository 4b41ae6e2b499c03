"""Rehearsal pools: text sampled from a base once, by an internal job, and handed to every job that starts from it.

A base model of the catalog has one pool for every customer; a model of an account has one of the account's own.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec

from fusion_core.db.attempts import Attempt, CancelPendingError, LeaseLostError, completed_by, fenced
from fusion_core.db.endings import record_event
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.job_spec import SPEC_VERSION, SampleSpec
from fusion_core.states import INTERNAL_DEADLINE_S
from fusion_core.trainer_protocol import FileEntry, Manifest

OPERATOR_ACCOUNT = UUID("00000000-0000-7000-8000-000000000000")  # inserted by 0002_engine_jobs.sql
SAMPLE_PRIORITY = 100  # other jobs wait for it


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """What a job starts from: a base model of the catalog, or a model of an account."""

    base_model_id: UUID | None = None
    model_id: UUID | None = None
    account_id: UUID = OPERATOR_ACCOUNT


async def ensure_sampled(
    conn: Connection, base: Base, *, config: Mapping[str, object], rows: int, pool: str
) -> JobRow | None:
    """Create the job that samples `rows` sequences from a base, to run in the worker pool `pool`.

    `config` is the base's config.json; sequences are no longer than its positions. None: the base is being sampled or
    has been.
    """
    positions = config.get("max_position_embeddings")
    usual = SampleSpec(rows=rows)
    longest = positions if isinstance(positions, int) else usual.seq_len
    spec = msgspec.structs.replace(usual, seq_len=min(usual.seq_len, longest))
    async with conn.transaction():
        record = await queries.insert_job(
            conn,
            account_id=base.account_id,
            type="sample",
            idempotency_key=None,
            request_sha256=None,
            spec_version=SPEC_VERSION,
            spec=spec,
            base_model_id=base.base_model_id,
            source_model_id=base.model_id,
            dataset_id=None,
            price_version=None,
            estimate=None,
            pool=pool,
            requirements=[],
            priority=SAMPLE_PRIORITY,
            gpu_class=None,
            gpu_count=None,
            labels={},
            description=None,
            deadline_s=INTERNAL_DEADLINE_S,
        )
        if record is None:
            return None
        job = JobRow.of(record)
        await record_event(conn, job, "queued")
        return job


async def complete_sample(conn: Connection, attempt: Attempt, files: Sequence[FileEntry]) -> JobRow:
    """The pool and the completion as one transaction. Repeatable. Raises LeaseLostError, or CancelPendingError."""
    try:
        async with fenced(conn, attempt) as job:
            if job.cancel_requested_at is not None:
                raise CancelPendingError(attempt)
            await queries.insert_rehearsal_pool(
                conn,
                job_id=job.id,
                base_model_id=job.base_model_id,
                model_id=job.source_model_id,
                manifest=Manifest(tuple(files)),
            )
            completed = await queries.complete_job(conn, **attempt.fence, output_model_id=None, result=None)
            await record_event(conn, job, "completed")
            return JobRow.of(completed)
    except LeaseLostError:
        done = await completed_by(conn, attempt)
        if done is None:
            raise
        return done
