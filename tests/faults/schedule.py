"""Which fault happens when, to what, for how long: a function of the seed, kept as a file that can be replayed."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tests.faults.cluster import STORES, Cluster


class Fault(msgspec.Struct, frozen=True):
    """One fault. `amount` is what its kind needs: seconds of a clock, bytes a second, seconds of delay."""

    at_s: float
    kind: str
    target: str
    for_s: float
    amount: float = 0.0


class Targets(msgspec.Struct, frozen=True):
    """What faults can happen to."""

    services: tuple[str, ...]
    workers: tuple[str, ...]
    links: tuple[str, ...]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, cluster: Cluster) -> "Targets":
        workers = tuple(name for name in cluster.services if name.startswith("worker-"))
        missing = {"disk_full": not cluster.can_fill_disks, "clock_jump": not cluster.can_shift_clocks}
        kinds = tuple(kind for kind in KINDS if not missing.get(kind))
        return cls(cluster.services, workers, tuple(sorted(cluster.proxy.links)), kinds)

    def s3_links(self) -> tuple[str, ...]:
        return tuple(link for link in self.links if link.endswith(":s3"))


Choose = Callable[[random.Random, Targets], tuple[str, float, float]]  # target, seconds, amount


def _service(least_s: float, most_s: float) -> Choose:
    return lambda dice, targets: (dice.choice(targets.services), dice.uniform(least_s, most_s), 0.0)


def _worker(least_s: float, most_s: float, amounts: Sequence[float] = (0.0,)) -> Choose:
    return lambda dice, targets: (dice.choice(targets.workers), dice.uniform(least_s, most_s), dice.choice(amounts))


def _link(least_s: float, most_s: float, amounts: Sequence[float] = (0.0,)) -> Choose:
    return lambda dice, targets: (dice.choice(targets.links), dice.uniform(least_s, most_s), dice.choice(amounts))


def _s3(least_s: float, most_s: float) -> Choose:
    return lambda dice, targets: (dice.choice(targets.s3_links()), dice.uniform(least_s, most_s), 0.0)


def _store(*names: str, most_s: float) -> Choose:
    return lambda dice, targets: (dice.choice(names), dice.uniform(0.1, most_s), 0.0)


# Pauses of workers outlast the lease of four seconds. Seconds a clock jumps: within S3's tolerance and beyond it.
KINDS: dict[str, Choose] = {
    "kill": _service(0.2, 2.0),
    "kill_worker": _worker(0.2, 2.0),
    "kill_daemon": _worker(0.2, 2.0),
    "drain": _worker(0.2, 2.0),
    "pause": _service(1.0, 6.0),
    "pause_worker": _worker(5.0, 12.0),
    "pause_daemon": _worker(5.0, 12.0),
    "cut": _link(0.5, 6.0),
    "delay": _link(2.0, 8.0, (0.05, 0.3, 1.0)),
    "slow": _link(2.0, 8.0, (5_000, 50_000)),
    "half_open": _link(1.0, 8.0),
    "s3_503": _s3(1.0, 8.0),
    "s3_500": _s3(1.0, 8.0),
    "s3_hang": _s3(1.0, 8.0),
    "s3_away": _store("s3", most_s=6.0),
    "valkey_flush": _store("valkey", most_s=0.2),
    "valkey_restart": _store("valkey", most_s=3.0),
    "postgres_restart": _store("postgres", most_s=3.0),
    "postgres_kill": _store("postgres", most_s=3.0),
    "store_pause": _store(*STORES, most_s=6.0),
    "disk_full": _worker(2.0, 8.0),
    "clock_jump": _worker(3.0, 12.0, (-7200, -120, 120, 7200)),
}


def make(seed: int, seconds: float, count: int, targets: Targets) -> list[Fault]:
    """`count` faults over `seconds`. Kinds are dealt like cards, so that each comes before any comes again."""
    dice = random.Random(seed)
    deck: list[str] = []
    faults = []
    for at_s in sorted(dice.uniform(0, seconds) for _ in range(count)):
        if not deck:
            deck = list(targets.kinds)
            dice.shuffle(deck)
        kind = deck.pop()
        target, for_s, amount = KINDS[kind](dice, targets)
        faults.append(Fault(round(at_s, 2), kind, target, round(for_s, 2), amount))
    return faults


def write(path: Path, faults: Sequence[Fault]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(fault) + b"\n" for fault in faults))


def read(path: Path) -> list[Fault]:
    """Raises OSError or msgspec.ValidationError."""
    return [msgspec.json.decode(line, type=Fault) for line in path.read_bytes().splitlines()]
