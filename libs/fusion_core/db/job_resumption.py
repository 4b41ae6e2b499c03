"""A stopped job goes on: from its newest checkpoint as itself, from an older one as a new job beside it."""

import hashlib
from typing import Any, NamedTuple
from uuid import UUID

from fusion_core.db.endings import record_event
from fusion_core.db.jobs import NewJob, lock_own_job, resume_job, submit_job
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.job_spec import ContractSpec, CustomerSpec, read_customer_spec
from fusion_core.money import Estimate, PriceTable, estimate_contract, estimate_train
from fusion_core.states import State


class NotStoppedError(Exception):
    """Only a stopped job can go on from a named checkpoint. Its argument is the job's status."""


class CheckpointGoneError(Exception):
    """The job has no such checkpoint, or it cannot be read any more."""


class Resumption(NamedTuple):
    """The job that goes on, and whether it is a new one."""

    job: JobRow
    is_new: bool


def price_of_rest(prices: PriceTable, spec: CustomerSpec, step: int) -> Estimate:
    """What training after `step` costs a new job. Growth and the steps before it are the first job's to pay.

    A contraction's flat fee buys a contracted model, so each job pays it for itself. Raises PriceError.
    """
    if isinstance(spec, ContractSpec):
        return estimate_contract(prices, spec.params_before)
    tokens = (spec.total_steps - step) * spec.tokens_per_step
    return estimate_train(prices, spec.params_after, spec.params_after, tokens)


async def resume_from_checkpoint(
    conn: Connection,
    account_id: UUID,
    job_id: UUID,
    checkpoint_id: UUID,
    prices: PriceTable,
    key: str,
    deadline_s: float | None = None,
) -> Resumption | None:
    """From the newest checkpoint the job itself goes on; from an older one a new job with idempotency key `key`.

    The new job has the spec of the first, and a price of its own for the steps that are left. None: no such job.
    Raises NotStoppedError, CheckpointGoneError, PriceError, and what `submit_job` raises.
    """
    async with conn.transaction():
        job = await lock_own_job(conn, account_id, job_id)
        if job is None:
            return None
        checkpoint = await queries.get_checkpoint(conn, job_id=job.id, checkpoint_id=checkpoint_id)
        if checkpoint is None or checkpoint["state"] != "ok":
            raise CheckpointGoneError(checkpoint_id)
        if job.state != State.STOPPED:
            raise NotStoppedError(job.status)
        if checkpoint["step"] == job.last_checkpoint_step:
            resumed = await resume_job(conn, account_id, job.id)
            return Resumption(resumed or job, False)
        spec = read_customer_spec(job.type, job.spec)
        new = NewJob(
            account_id=account_id,
            type=job.type,
            spec=spec,
            pool=job.pool,
            priority=job.priority,
            gpu_class=job.gpu_class,
            gpu_count=job.gpu_count,
            dataset_id=job.dataset_id,
            base_model_id=job.base_model_id,
            source_model_id=job.source_model_id,
            labels=job.labels,
            description=job.description,
            idempotency_key=key,
            request_sha256=hashlib.sha256(checkpoint_id.bytes).digest(),
            price_version=prices.version,
            estimate=price_of_rest(prices, spec, checkpoint["step"]),
            deadline_s=deadline_s,
        )
        made, created = await submit_job(conn, new)
        return Resumption(await _begin_at(conn, made, checkpoint) if created else made, created)


async def _begin_at(conn: Connection, job: JobRow, checkpoint: Any) -> JobRow:
    record = await queries.start_from_checkpoint(conn, job_id=job.id, checkpoint_id=checkpoint["id"])
    begun = JobRow.of(record)
    await record_event(conn, begun, "resumed", {"step": begun.start_step, "from_job_id": str(begun.resumed_from)})
    return begun
