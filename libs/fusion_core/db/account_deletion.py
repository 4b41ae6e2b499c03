"""Deleting an account: closed at once, its jobs cancelled, its rows deleted when the last of them has ended.

What stays is a line of `ledger_stubs` for each job: amounts and ids, nothing that the customer wrote. Every step may be
repeated, so a crash between two of them costs nothing; objects in the store are garbage afterwards, and pruned.
"""

from typing import Any
from uuid import UUID

import msgspec

from fusion_core.db.audit import By, record
from fusion_core.db.endings import end_cancelled
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rehearsal_pools import OPERATOR_ACCOUNT
from fusion_core.db.rows import JobRow
from fusion_core.states import State

_JOBS_AT_ONCE = 200


class UnknownAccountError(ValueError):
    """There is no such account, or it is the operator's own, which every base model's rehearsal pool belongs to."""


class Contents(msgspec.Struct, frozen=True):
    """How many rows of each kind an account has."""

    jobs: int
    open_jobs: int
    models: int
    datasets: int
    uploads: int
    api_keys: int
    webhooks: int


async def read_contents(conn: Connection, account_id: UUID) -> Contents:
    """Raises UnknownAccountError."""
    row = await queries.contents_of_account(conn, account_id=account_id)
    if row is None or account_id == OPERATOR_ACCOUNT:
        raise UnknownAccountError(f"there is no account {account_id} that can be deleted")
    return Contents(**{field: row[field] for field in Contents.__struct_fields__})


async def close_account(conn: Connection, account_id: UUID, by: By) -> Contents:
    """From now on no key of the account works. `empty_closed_accounts` does the rest. Raises UnknownAccountError."""
    async with conn.transaction():
        contents = await read_contents(conn, account_id)
        if await queries.close_account(conn, account_id=account_id) is not None:
            await record(conn, by, "delete_account", "account", str(account_id), msgspec.to_builtins(contents), None)
    return contents


async def empty_closed_accounts(conn: Connection, most: int = 100) -> list[UUID]:
    """One pass over the closed accounts, some jobs of each; answers those of which nothing is left but stubs.

    Raises OSError, TimeoutError or asyncpg's errors; what was done stays done.
    """
    accounts = [row["id"] async for row in queries.closed_accounts(conn, limit=most)]
    return [account_id for account_id in accounts if await _empty(conn, account_id)]


async def _empty(conn: Connection, account_id: UUID) -> bool:
    cancellable = queries.open_jobs_of_account(conn, account_id=account_id, limit=_JOBS_AT_ONCE)
    for row in [row async for row in cancellable]:
        await _cancel(conn, row["id"])
    if await queries.has_open_jobs(conn, account_id=account_id):
        return False  # running ones end when their workers hear of it, or when their leases do
    while ids := [
        row["id"] async for row in queries.histories_of_account(conn, account_id=account_id, limit=_JOBS_AT_ONCE)
    ]:
        await queries.delete_outbox_of_jobs(conn, job_ids=ids)
        await queries.delete_histories(conn, job_ids=ids)
    return await _delete_rows(conn, account_id)


async def _cancel(conn: Connection, job_id: UUID) -> None:
    """As the customer would, but of internal jobs too."""
    async with conn.transaction():
        record: Any = await queries.lock_job(conn, job_id=job_id)
        if record["state"] in (State.QUEUED, State.STOPPED):
            await end_cancelled(conn, JobRow.of(record), await queries.cancel_idle_job(conn, job_id=job_id))
        elif record["state"] == State.RUNNING:
            await queries.request_cancel(conn, job_id=job_id)


async def _delete_rows(conn: Connection, account_id: UUID) -> bool:
    """Under the account's lock; a request that was under way and adds a job first is found at the next pass."""
    async with conn.transaction():
        await queries.lock_account_whole(conn, account_id=account_id)
        if await queries.has_open_jobs(conn, account_id=account_id):
            return False
        await queries.write_ledger_stubs(conn, account_id=account_id)
        await queries.delete_account_rows(conn, account_id=account_id)
    return True
