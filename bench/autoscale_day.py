"""A day as `autoscale.py` supposes it: when jobs come and how long they are, and what nodes do to those who rent them.

Nothing here is measured: these are the suppositions, and a simulation says no more than they do. Times are in seconds.
"""

import math
import random
from uuid import UUID

import msgspec

HOUR_S = 3600.0


class Supposed(msgspec.Struct, frozen=True, kw_only=True):
    """The constants of the model. Those of the chart are read from its values.yaml."""

    hours: float = 24.0
    from_h: float = 0.0  # the hour of the day that it begins at
    seed: int = 1
    # Jobs an hour: at night, in addition at the top of the working day, and at once by the nightly batch.
    night_rate: float = 0.4
    day_rate: float = 12.0
    batch: int = 12
    batch_at_h: float = 2.0
    median_job_s: float = 40 * 60.0  # of training, log-normal
    job_sigma: float = 0.7
    longest_job_s: float = 6 * HOUR_S
    step_s: float = 2.0
    load_s: float = 60.0  # from a claim to the first step: download, build, read the checkpoint
    upload_s: float = 30.0  # of a checkpoint, while training goes on
    drain_s: float = 45.0  # SIGTERM to released: the step's end, the checkpoint and its upload
    # A node: bought, booted, driver and image there; then a pod on it. An empty one is kept for as long as the cluster
    # autoscaler's --scale-down-unneeded-time says by default.
    node_s: float = 270.0
    node_sigma: float = 0.25
    node_least_s: float = 180.0
    node_most_s: float = 420.0
    pod_s: float = 20.0
    empty_s: float = 600.0
    # Interruptions of a spot node: once in so many hours, four in five with a notice.
    spot_mean_h: float = 8.0
    noticed: float = 0.8
    node_missed_s: float = 60.0  # until Kubernetes knows that a node is gone and its pod with it


def cut_up(supposed: Supposed, median_job_s: float) -> Supposed:
    """The same day with jobs of another length, and as many more of them as they are shorter."""
    more = supposed.median_job_s / median_job_s
    return msgspec.structs.replace(
        supposed,
        median_job_s=median_job_s,
        night_rate=supposed.night_rate * more,
        day_rate=supposed.day_rate * more,
        batch=round(supposed.batch * more),
    )


class Arrival(msgspec.Struct, frozen=True):
    """A job that is submitted at `at`, of one of two accounts, with so many steps."""

    at: float
    account: int
    steps: int


def rate(supposed: Supposed, at: float) -> float:
    """Jobs an hour, `at` seconds after the beginning: few at night, a half sine over the working hours, 8 to 19 h."""
    hour = (supposed.from_h + at / HOUR_S) % 24
    working = math.sin(math.pi * (hour - 8) / 11) if 8 <= hour <= 19 else 0.0
    return supposed.night_rate + supposed.day_rate * working


def arrivals(supposed: Supposed) -> list[Arrival]:
    """A Poisson process of that rate, by thinning (Lewis and Shedler 1979), and the nightly batch; the seed decides."""
    dice = random.Random(supposed.seed)
    most = supposed.night_rate + supposed.day_rate
    moments, at = [], 0.0
    while (at := at + dice.expovariate(most / HOUR_S)) < supposed.hours * HOUR_S:
        if dice.random() < rate(supposed, at) / most:
            moments.append((at, 0))
    batch_in_h = (supposed.batch_at_h - supposed.from_h) % 24
    if batch_in_h < supposed.hours:
        moments += [(batch_in_h * HOUR_S, 1)] * supposed.batch
    return [Arrival(at, account, _steps(supposed, dice)) for at, account in sorted(moments)]


def _steps(supposed: Supposed, dice: random.Random) -> int:
    length = dice.lognormvariate(math.log(supposed.median_job_s), supposed.job_sigma)
    return max(1, round(min(length, supposed.longest_job_s) / supposed.step_s))


def offered_gpu_s(supposed: Supposed, jobs: list[Arrival]) -> float:
    """What the jobs take of a GPU if nothing ever interrupts them."""
    return sum(supposed.load_s + job.steps * supposed.step_s for job in jobs)


class Nature:
    """How long nodes take to start, when they are taken away, and whether it is said before."""

    def __init__(self, supposed: Supposed, *, spot: bool) -> None:
        self._supposed = supposed
        self._spot = spot
        self._dice = random.Random(supposed.seed + 1)

    def node_start_s(self) -> float:
        s = self._supposed
        drawn = self._dice.lognormvariate(math.log(s.node_s), s.node_sigma)
        return min(max(drawn, s.node_least_s), s.node_most_s)

    def interruption(self) -> tuple[float, bool] | None:
        """(seconds from the node's start on, whether there is a notice); None: the node is nobody's but ours."""
        if not self._spot:
            return None
        return self._dice.expovariate(1 / (self._supposed.spot_mean_h * HOUR_S)), (
            self._dice.random() < self._supposed.noticed
        )

    def worker_id(self) -> UUID:
        """Random, as a pod's id is, and the same for the same seed."""
        return UUID(int=self._dice.getrandbits(128), version=4)

    def choose(self, count: int) -> int:
        """Which of `count` that are equal to Kubernetes."""
        return self._dice.randrange(count)
