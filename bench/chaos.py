"""Fusion under faults: real processes, a seeded schedule, and a proof from the database, the bucket and the customers.

    .venv/bin/python bench/chaos.py [--seconds 60] [--faults 30] [--seed 1] [--runs 1] [--replay schedule.jsonl]

Two apis, two orchestrators and four workers, each reaching Postgres, Valkey and S3 through a proxy of its own that
cuts, delays, slows and silences; services are killed, paused beyond their lease and drained, stores restarted, flushed
and paused, disks filled and clocks shifted. Afterwards every job must have ended as if nothing had happened. Exits with
1 at a violation, naming the seed and keeping the history. Run r of several has the seed `seed` + r.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # the harness belongs to the tests, which are not installed

from tests.faults.chaos import Result, Watching, run
from tests.faults.schedule import Fault

console = Console(highlight=False, soft_wrap=True, width=120)


def one_run(root: Path, seed: int, arguments: argparse.Namespace) -> Result:
    with Progress(console=console) as progress:
        faults = progress.add_task(f"seed {seed}: faults", total=arguments.faults)
        jobs = progress.add_task("jobs over", total=None)

        def on_fault(fault: Fault, number: int) -> None:
            amount = f" {fault.amount:g}" if fault.amount else ""
            console.print(f"  {fault.at_s:7.2f} s  {fault.kind:<16} {fault.target:<24} {fault.for_s:.1f} s{amount}")
            progress.update(faults, completed=number)

        def on_recovery(over: int, of: int) -> None:
            progress.update(jobs, completed=over, total=of)

        watching = Watching(on_fault, on_recovery)
        engine, replay = arguments.trainer == "both", arguments.replay
        return run(root, seed, arguments.seconds, arguments.faults, watching, replay=replay, engine=engine)


def show(results: dict[int, Result], seconds: float) -> None:
    table = Table("seed", "faults", "jobs", "interruptions", "exits", "healed in, s", "violations")
    for seed, result in results.items():
        jobs = ", ".join(f"{count} {state}" for state, count in sorted(result.jobs.items()))
        row = (result.faults.total(), jobs, result.interruptions, result.exits.total(), f"{result.healed_after_s:.0f}")
        table.add_row(str(seed), *map(str, row), str(len(result.violations)))
    kinds: Counter[str] = sum((result.faults for result in results.values()), Counter())
    console.print(table)
    console.print(f"{kinds.total()} faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    left_out = sorted({kind for result in results.values() for kind in result.left_out})
    if left_out:
        console.print(
            f"left out: {', '.join(left_out)} (disks are filled by root alone, clocks jump where there is a cc)"
        )
    console.print(f"{seconds:.0f} s in all")
    for seed, result in results.items():
        for violation in result.violations:
            console.print(f"VIOLATION, seed {seed}: {violation}", style="red", markup=False)
        if result.violations:
            console.print(f"  history: {result.history}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults begin")
    parser.add_argument("--faults", type=int, help="how many; one in two seconds unless given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--trainer", choices=("stub", "both"), default="stub", help="both: one worker more, the real one"
    )
    parser.add_argument("--replay", type=Path, help="a schedule.jsonl of an earlier run, instead of one of the seed")
    parser.add_argument("--keep", type=Path, help="where histories and logs stay; else a temporary folder")
    arguments = parser.parse_args()
    arguments.faults = arguments.faults or int(arguments.seconds / 2)
    root: Path = arguments.keep or Path(tempfile.mkdtemp(prefix="fusion-chaos-"))
    results, began = {}, time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        folder = root / f"seed-{seed}"
        folder.mkdir(parents=True)
        results[seed] = one_run(folder, seed, arguments)
    show(results, time.monotonic() - began)
    sys.exit(any(result.violations for result in results.values()))


if __name__ == "__main__":
    main()
