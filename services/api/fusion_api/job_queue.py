"""Where a queued job stands, and when it may start."""

from datetime import timedelta
from typing import Any

import msgspec
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.db.waiting import HELD, RECENT_JOBS, Waiting, expected_wait_s, explain

from fusion_api.times import Time, shown

MOST_AHEAD = 1000  # counted no further: nobody waits for place 1,001 in particular


class QueuePlace(msgspec.Struct, frozen=True):
    """`position` 1 is next, 1,001 is any later place. `expected_start_at` None: nothing is known to serve it.

    `waits_for` has every reason why it has not started; none: a worker takes it at any moment.
    """

    position: int
    expected_start_at: Time | None
    waits_for: list[Waiting]


async def read_place(connection: Connection, job: JobRow) -> QueuePlace:
    """In the order in which jobs are served: priority, fair share between accounts, age."""
    return place_of(await queries.queue_of_job(connection, job_id=job.id, most=MOST_AHEAD, recent=RECENT_JOBS))


def place_of(row: Any) -> QueuePlace:
    """`row` is that of `queue_of_job`."""
    waits_for = explain(row["waits_for"], not_before=shown(row["not_before"]), created_at=shown(row["created_at"]))
    position = row["ahead"] + 1
    wait_s = expected_wait_s(position, row["idle"], row["workers"], row["mean_s"])
    if wait_s is None or HELD.intersection(row["waits_for"]):
        return QueuePlace(position, None, waits_for)
    return QueuePlace(position, shown(row["earliest"] + timedelta(seconds=wait_s)), waits_for)
