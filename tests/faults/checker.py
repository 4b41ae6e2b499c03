"""The history checker: proves the invariants of the design from the database, the bucket and what customers saw."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
from fusion_core.db.pool import OwnConnection, connect
from fusion_core.money import Estimate
from fusion_core.storage import ObjectMissingError, Storage
from fusion_core.trainer_protocol import Manifest
from fusion_local.stack import Stack

from tests.faults.chain_trainer import WEIGHTS_FILE, weights
from tests.faults.cluster import POOL
from tests.faults.history import History
from tests.integration.db import invariants

TERMINAL = ("completed", "failed", "cancelled")


class Violation(NamedTuple):
    """One broken invariant: its rule, the job, and what was found."""

    rule: str
    job: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: job {self.job}: {self.detail}"


class Seen(NamedTuple):
    """All rows of one job."""

    job: Any
    events: list[Any]
    models: list[Any]
    ledger: list[Any]
    checkpoints: list[Any]
    steps: list[int]


async def check(stack: Stack, history: History) -> list[Violation]:
    """Every violation there is, once the faults have ended and the cluster has had its time."""
    connection = await connect(stack.database_url(), application_name="checker")
    try:
        everyone = await invariants.all_jobs(connection)
        rows = [*await invariants.violations(connection, everyone), *await invariants.unsettled(connection, everyone)]
        jobs = [await _read(connection, row) for row in await connection.fetch("select * from jobs where not internal")]
    finally:
        await connection.close()
    found = [Violation(f"invariant {broken.rule}", str(broken.job_id), str(broken)) for broken in rows]
    found += what_customers_saw(history, {str(seen.job["id"]): seen for seen in jobs})
    asked = {entry.data["job"] for entry in history.of("asks") if entry.data["call"] == "cancel_job"}
    found += same_models(jobs)
    async with Storage(stack.settings()) as storage:
        for seen in jobs:
            found += ending(seen, cancelled=str(seen.job["id"]) in asked)
            found += numbering(seen)
            found += one_attempt_at_a_time(seen)
            found += progress(seen)
            found += money(seen)
            found += [violation async for violation in stored(storage, seen)]
    return found


async def _read(connection: OwnConnection, job: Any) -> Seen:
    async def rows(table: str, order: str) -> list[Any]:
        return await connection.fetch(f"select * from {table} where job_id = $1 order by {order}", job["id"])  # noqa: S608

    return Seen(
        job,
        await rows("job_events", "seq"),
        await rows("models", "id"),
        await rows("ledger", "id"),
        await rows("checkpoints", "step, epoch"),
        [row["step"] for row in await rows("job_metrics", "step")],
    )


# -- what customers saw ----------------------------------------------------------------------------------------------


def what_customers_saw(history: History, jobs: dict[str, Seen]) -> Iterator[Violation]:
    for entry in history.of("customer_broke"):
        yield Violation("the client raises only its own errors", "-", entry.data["error"])
    for entry in history.of("saw_anothers"):
        yield Violation("no account sees another's object", entry.data["job"], f"{entry.who} saw it")
    for broken in {(entry.data["rule"], entry.data["job"]): entry for entry in history.of("broken")}.values():
        yield Violation(
            f"invariant {broken.data['rule']}", broken.data["job"], f"{broken.data['what']} at {broken.at_s} s"
        )
    for entry in history.of("vanished"):
        yield Violation("an acknowledged POST survives", entry.data["job"], f"answered 404 at {entry.at_s} s")
    yield from _acknowledged(history, jobs)
    yield from _statuses(history, jobs)
    yield from _streams(history, jobs)


def _acknowledged(history: History, jobs: dict[str, Seen]) -> Iterator[Violation]:
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for entry in history.of("acknowledged"):
        ids[entry.data["key"]].add(entry.data["job"])
    for key, answered in ids.items():
        if len(answered) > 1:
            yield Violation("a repeated POST answers the same job", key, str(sorted(answered)))
        for job_id in answered:
            if job_id not in jobs or jobs[job_id].job["idempotency_key"] != key:
                yield Violation("an acknowledged POST survives", job_id, f"no row with the key {key}")


def _statuses(history: History, jobs: dict[str, Seen]) -> Iterator[Violation]:
    last: dict[str, dict[str, Any]] = {}
    for entry in history.of("saw"):
        job_id, now = entry.data["job"], entry.data
        before = last.get(job_id)
        if before is not None and before["status"] in TERMINAL and now["status"] != before["status"]:
            yield Violation("a terminal job never changes", job_id, f"{before['status']} became {now['status']}")
        if before is not None and (now["retries"] < before["retries"] or now["checkpoint"] < before["checkpoint"]):
            yield Violation("retries and checkpoints never go back", job_id, f"{before} became {now}")
        last[job_id] = now
    for job_id, now in last.items():
        if now["status"] in TERMINAL and job_id in jobs and jobs[job_id].job["state"] != now["status"]:
            yield Violation(
                "a terminal job never changes", job_id, f"{now['status']}, later {jobs[job_id].job['state']}"
            )


def _streams(history: History, jobs: dict[str, Seen]) -> Iterator[Violation]:
    cursors: dict[str, int] = {}
    for entry in history.of("event"):
        job_id, seq = entry.data["job"], entry.data["seq"]
        expected = cursors.get(job_id, 0) + 1
        cursors[job_id] = seq
        if seq != expected:
            yield Violation("events have no gaps and no repeats", job_id, f"number {seq} came instead of {expected}")
        rows = jobs[job_id].events if job_id in jobs else []
        if len(rows) < seq or rows[seq - 1]["type"] != entry.data["type"]:
            yield Violation("events that were seen stay", job_id, f"number {seq} was {entry.data['type']}")


# -- what the database says ------------------------------------------------------------------------------------------


def ending(seen: Seen, *, cancelled: bool) -> Iterator[Violation]:
    job, job_id = seen.job, str(seen.job["id"])
    if job["state"] not in TERMINAL:
        detail = f"{job['state']}, retries {job['retries']}, quarantined {job['quarantined_at']}"
        yield Violation("every job ends", job_id, detail)
    if job["state"] == "failed":
        yield Violation("no fault of the platform fails a job", job_id, str(job["error"]))
    if job["state"] == "cancelled" and not cancelled:
        yield Violation("only a customer cancels", job_id, "nobody asked")
    if len(seen.models) != (1 if job["state"] == "completed" else 0):
        yield Violation("one completed job, one model", job_id, f"{job['state']} with {len(seen.models)} models")
    elif seen.models and seen.models[0]["id"] != job["output_model_id"]:
        yield Violation("one completed job, one model", job_id, "the model is not the one that the job names")


def numbering(seen: Seen) -> Iterator[Violation]:
    job_id, seqs = str(seen.job["id"]), [event["seq"] for event in seen.events]
    if seqs != list(range(1, seen.job["event_seq"] + 1)):
        yield Violation("events have no gaps and no repeats", job_id, f"{seqs}, and {seen.job['event_seq']} on the row")
    last = [event["type"] for event in seen.events if event["type"] in TERMINAL]
    if seen.job["state"] in TERMINAL and (last != [seen.job["state"]] or seen.events[-1]["type"] != last[0]):
        yield Violation("one final event, and the last", job_id, str(last))


def one_attempt_at_a_time(seen: Seen) -> Iterator[Violation]:
    """Between two claims the first attempt was taken back, and nothing of it is numbered after that."""
    job_id, held, over, epoch = str(seen.job["id"]), False, set(), 0
    writing = None
    for event in seen.events:
        kind, attempt = event["type"], event["attempt_id"]
        if kind == "claimed":
            if held or event["data"]["attempt"] <= epoch:
                yield Violation("one attempt at a time", job_id, f"event {event['seq']} claims what is held")
            held, epoch, writing = True, event["data"]["attempt"], None
        elif kind in ("interrupted", "stopped", *TERMINAL):
            held = False
            over.add(writing)
        if attempt is None:
            continue
        if not held or attempt in over - {None} or writing not in (None, attempt):
            yield Violation("one attempt at a time", job_id, f"event {event['seq']} is of an attempt that is over")
        writing = attempt
    if epoch != seen.job["lease_epoch"]:
        yield Violation("every claim has its event", job_id, f"epoch {seen.job['lease_epoch']}, last claimed {epoch}")


def progress(seen: Seen) -> Iterator[Violation]:
    job_id = str(seen.job["id"])
    steps = [event["data"]["step"] for event in seen.events if event["type"] == "checkpoint"]
    lost = any(event["type"] == "checkpoint_lost" for event in seen.events)
    if not lost and any(later < earlier for earlier, later in pairwise(steps)):
        yield Violation("checkpoints never go back", job_id, str(steps))
    if not lost and max(steps, default=0) != seen.job["last_checkpoint_step"]:
        yield Violation("checkpoints never go back", job_id, f"{steps}, and {seen.job['last_checkpoint_step']}")
    if lost:
        yield Violation("no checkpoint is lost", job_id, "its objects were there all the time")
    if seen.job["state"] == "completed" and seen.job["pool"] == POOL:  # the real trainer reports some steps only
        total = seen.job["spec"]["hyperparams"]["train_steps"]
        if seen.steps != list(range(1, total + 1)):
            yield Violation("the curve has every step", job_id, f"{len(seen.steps)} of {total}")


def money(seen: Seen) -> Iterator[Violation]:
    job, job_id = seen.job, str(seen.job["id"])
    paid = [row["amount_microusd"] for row in seen.ledger]
    total = msgspec.convert(job["estimate"], Estimate).total_microusd
    if len(paid) != (1 if job["state"] in TERMINAL else 0):
        yield Violation("one line in the ledger", job_id, f"{job['state']}: {paid}")
    elif job["state"] == "completed" and paid != [total]:
        yield Violation("the bill is the estimate", job_id, f"{paid[0]} instead of {total}")
    elif paid and (paid[0] > total or (job["state"] == "failed" and paid[0])):
        yield Violation("the bill is the estimate", job_id, f"{job['state']} and billed {paid[0]} of {total}")


def same_models(jobs: Iterable[Seen]) -> Iterator[Violation]:
    """The real trainer's jobs all ask for the same: their exports are the same, byte by byte, manifest by manifest."""
    models = [
        (str(seen.job["id"]), seen.models[0]["manifest"]) for seen in jobs if seen.job["pool"] != POOL and seen.models
    ]
    for job_id, manifest in models[1:]:
        if manifest != models[0][1]:
            yield Violation("the weights are those of an undisturbed run", job_id, f"not those of job {models[0][0]}")


# -- what the bucket says --------------------------------------------------------------------------------------------


async def stored(storage: Storage, seen: Seen) -> Any:
    """Every object that a row names is there, with the bytes that its manifest promises and the job must have made."""
    job_id = str(seen.job["id"])
    named: Iterable[Any] = [*seen.models, *(row for row in seen.checkpoints if row["state"] == "ok")]
    for row in named:
        for entry in msgspec.convert(row["manifest"], Manifest).files:
            key = f"{row['s3_prefix']}/{entry.rel}"
            try:
                content = await storage.get_bytes(key)
            except ObjectMissingError:
                yield Violation("a manifest matches its objects", job_id, f"{key} is missing")
                continue
            if (len(content), hashlib.sha256(content).hexdigest()) != (entry.size, entry.sha256):
                yield Violation("a manifest matches its objects", job_id, f"{key} has other bytes")
            spec = seen.job["spec"]["hyperparams"]
            if seen.job["pool"] != POOL:
                continue
            if entry.rel == WEIGHTS_FILE and content != weights(spec["output_name"], spec["train_steps"]):
                yield Violation("the weights are those of an undisturbed run", job_id, key)
