"""One seeded run: faults on a working cluster, then healing, then the proof. bench/chaos.py is its command."""

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fusion_core.db.pool import connect

from tests.faults import schedule
from tests.faults.checker import Violation, check
from tests.faults.cluster import Cluster
from tests.faults.customers import Customer, Work
from tests.faults.history import History
from tests.faults.injector import Injector
from tests.faults.schedule import Fault, Targets
from tests.faults.witness import Witness

TICK_S = 0.1
RECOVERY_DEADLINE_S = 180.0
GROUP_DEADLINE_S = 10.0
CHAIN = Work({"train_steps": 50}, every_s=2.0)
# One model name for all: the card that comes with a model has it, and the exports are compared byte by byte.
ENGINE = Work(
    {"train_steps": 30, "batch_size": 2, "seq_len": 16, "lr": 0.01, "output_name": "grown"},
    every_s=20.0,
    most_jobs=3,
    cancelled=0.0,
)


class Result(NamedTuple):
    """What a run was and what it found."""

    faults: Counter[str]
    violations: list[Violation]
    jobs: Counter[str]
    interruptions: int
    exits: Counter[str]
    healed_after_s: float
    history: Path
    left_out: tuple[str, ...]
    """Kinds that this machine cannot do: disks are filled where we may mount one, clocks jump where there is a cc."""


class Watching(NamedTuple):
    """How a run shows itself: (faults so far, of) and (jobs over, of)."""

    on_fault: Callable[[Fault, int], None]
    on_recovery: Callable[[int, int], None]


def run(
    root: Path,
    seed: int,
    seconds: float,
    count: int,
    watching: Watching,
    *,
    replay: Path | None = None,
    engine: bool = False,
) -> Result:
    """One run; with `engine` a fifth worker has the real trainer. For the main thread only.

    Raises what starting the cluster raises.
    """
    with (
        History(root / "history.jsonl") as history,
        Cluster(root / "cluster", seed=seed, engine=engine) as cluster,
    ):
        customers = make_customers(cluster, history, seed)
        targets = Targets.of(cluster)
        faults = schedule.read(replay) if replay else schedule.make(seed, seconds, count, targets)
        schedule.write(root / "schedule.jsonl", faults)
        for customer in customers:
            customer.start()
        injector = Injector(cluster, history)
        with Witness(cluster.stack, history) as witness:
            done = inject(injector, faults, seconds, watching)
        healed = time.monotonic()
        for customer in customers:
            customer.quiet.set()
        recover(injector, customers, watching)
        took_s = time.monotonic() - healed
        violations = _after(cluster, customers, injector)
        violations += asyncio.run(check(cluster.stack, history))
        violations += [] if witness.looks else [Violation("the rows were watched", "-", "no look was answered")]
        violations += [Violation("a drain ends", "-", entry.data["service"]) for entry in history.of("drain_overdue")]
        left_out = tuple(kind for kind in schedule.KINDS if kind not in targets.kinds)
        jobs, interruptions = asyncio.run(_counts(cluster))
    return Result(done, violations, jobs, interruptions, Counter(injector.exits), took_s, history.path, left_out)


def make_customers(cluster: Cluster, history: History, seed: int) -> list[Customer]:
    """Each pries into the jobs of the next."""
    customers = [Customer(cluster, account, history, seed, CHAIN, cluster.apis) for account in cluster.accounts]
    if cluster.engine_account is not None:
        apis = (cluster.engine_api,)
        customers.append(Customer(cluster, cluster.engine_account, history, seed, ENGINE, apis))
    for customer, other in zip(customers, [*customers[1:], customers[0]], strict=True):
        customer.other = other
    return customers


def inject(injector: Injector, faults: Sequence[Fault], seconds: float, watching: Watching) -> Counter[str]:
    """Begin and end each fault at its time; answers how many of each kind there were."""
    began = time.monotonic()
    agenda = [(fault.at_s, number, True, fault) for number, fault in enumerate(faults)]
    heapq.heapify(agenda)
    done: Counter[str] = Counter()
    while agenda or time.monotonic() - began < seconds:
        now = time.monotonic() - began
        if now >= seconds and not any(begins for _, _, begins, _ in agenda):
            break
        if agenda and agenda[0][0] <= now:
            _, number, begins, fault = heapq.heappop(agenda)
            if not begins:
                injector.end(fault)
            elif injector.begin(fault):
                done[fault.kind] += 1
                watching.on_fault(fault, done.total())
                heapq.heappush(agenda, (now + fault.for_s, number, False, fault))
            else:  # its target is away: as soon as it is back
                heapq.heappush(agenda, (now + 0.5, number, True, fault))
            continue
        injector.supervise()
        time.sleep(TICK_S)
    injector.heal()
    return done


def recover(injector: Injector, customers: Sequence[Customer], watching: Watching) -> None:
    """Until every job has ended as its customer sees it, or the deadline."""
    until = time.monotonic() + RECOVERY_DEADLINE_S
    while time.monotonic() < until:
        injector.supervise()
        over = sum(customer.count_over() for customer in customers)
        total = sum(len(customer.jobs) for customer in customers)
        watching.on_recovery(over, total)
        if over == total and not any(customer.is_submitting() for customer in customers):
            return
        time.sleep(TICK_S)


def _after(cluster: Cluster, customers: Sequence[Customer], injector: Injector) -> list[Violation]:
    """What must hold of processes once all jobs are over; then the customers go."""
    until = time.monotonic() + GROUP_DEADLINE_S
    while (left := cluster.trainers()) and time.monotonic() < until:
        injector.supervise()
        time.sleep(TICK_S)
    for customer in customers:
        customer.stop()
    return [Violation("no trainer outlives its job", "-", " ".join(process.cmdline())) for process in left]


async def _counts(cluster: Cluster) -> tuple[Counter[str], int]:
    connection = await connect(cluster.stack.database_url(), application_name="chaos")
    try:
        rows = await connection.fetch("select state, retries from jobs where not internal")
    finally:
        await connection.close()
    return Counter(row["state"] for row in rows), sum(row["retries"] for row in rows)
