"""Checkpoints of a job: rows that an attempt writes once their objects are stored, fenced as all that it writes."""

from uuid import UUID

import msgspec

from fusion_core.db.attempts import Attempt, LeaseLostError, fenced
from fusion_core.db.endings import WEBHOOK_TOPICS, record_event
from fusion_core.db.pool import Connection, queries
from fusion_core.trainer_protocol import Manifest


class NewCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    step: int
    turn_end: bool
    s3_prefix: str
    manifest: Manifest
    format_version: int


class Checkpoint(msgspec.Struct, frozen=True):
    step: int
    epoch: int
    s3_prefix: str
    manifest: Manifest
    format_version: int


async def commit_checkpoint(conn: Connection, attempt: Attempt, checkpoint: NewCheckpoint) -> None:
    """Make an uploaded, verified checkpoint the resume point. Repeatable. Raises LeaseLostError."""
    held = await queries.commit_checkpoint(
        conn,
        **attempt.fence,
        step=checkpoint.step,
        format_version=checkpoint.format_version,
        turn_end=checkpoint.turn_end,
        s3_prefix=checkpoint.s3_prefix,
        manifest=checkpoint.manifest,
        data={"step": checkpoint.step, "turn_end": checkpoint.turn_end, "bytes": checkpoint.manifest.size},
        topic=WEBHOOK_TOPICS["checkpoint"],
    )
    if held is None:
        raise LeaseLostError(attempt)


async def readable_checkpoints(conn: Connection, job_id: UUID) -> list[Checkpoint]:
    """Committed checkpoints that are not marked lost, newest first."""
    return [
        Checkpoint(
            step=record["step"],
            epoch=record["epoch"],
            s3_prefix=record["s3_prefix"],
            manifest=msgspec.convert(record["manifest"], Manifest),
            format_version=record["format_version"],
        )
        async for record in queries.readable_checkpoints(conn, job_id=job_id)
    ]


async def mark_checkpoint_lost(conn: Connection, attempt: Attempt, checkpoint: Checkpoint, reason: str) -> None:
    """A checkpoint that cannot be read: the job falls back to the newest readable one. Raises LeaseLostError."""
    async with fenced(conn, attempt) as job:
        await queries.lose_checkpoint(conn, job_id=job.id, step=checkpoint.step, epoch=checkpoint.epoch)
        await queries.fall_back_checkpoint(conn, job_id=job.id)
        await record_event(conn, job, "checkpoint_lost", {"step": checkpoint.step, "reason": reason})


async def note_failed_checkpoint(conn: Connection, attempt: Attempt, step: int, reason: str) -> None:
    """A checkpoint that could not be kept: training goes on, and the event says what a loss would cost by now.

    Raises LeaseLostError.
    """
    async with fenced(conn, attempt) as job:
        age_s = await queries.checkpoint_age(conn, job_id=job.id)
        newest = f"of step {job.last_checkpoint_step}, {age_s / 60:.0f} minutes old" if age_s is not None else "none"
        data = {
            "code": "checkpoint_upload_failed",
            "message": f"{reason}. Training goes on; the newest checkpoint: {newest}.",
            "step": step,
            "checkpoint_step": job.last_checkpoint_step,
            "checkpoint_age_s": age_s,
        }
        await record_event(conn, job, "notice", data)
