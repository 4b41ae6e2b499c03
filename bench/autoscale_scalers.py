"""Who decides how many pods there are: nobody (a fixed pool), KEDA over a Deployment, or KEDA with a Job for each job.

After KEDA (pkg/scaling/executor), the HorizontalPodAutoscaler of Kubernetes (pkg/controller/podautoscaler) and the
ReplicaSet's order of deletion (pkg/controller, ActivePodsWithRanks). Windows and policies are those of
deploy/helm/fusion/templates/worker-scaledobject.yaml; times in seconds.
"""

import math
from typing import Protocol

import msgspec
from autoscale_fleet import Fleet, Pod
from autoscale_timeline import Timeline

HPA_SYNC_S = 15.0
HPA_TOLERANCE = 0.1
UP_PERCENT, UP_PODS, UP_PERIOD_S = 100, 4, 15.0
DOWN_PODS, DOWN_PERIOD_S = 1, 60.0
LONGEST_WINDOW_S = 3600.0


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """What values.yaml says of a pool."""

    least: int
    most: int
    idle_s: float
    polling_s: float


class Scaler(Protocol):
    """`changed` is called when a pod went that the scaler did not send away."""

    def begin(self) -> None: ...

    async def changed(self) -> None: ...


class Replicas:
    """A Deployment: so many pods, whatever happens to them. Fixed, unless somebody sets `replicas`."""

    def __init__(self, timeline: Timeline, fleet: Fleet, replicas: int) -> None:
        self._timeline = timeline
        self._fleet = fleet
        self.replicas = replicas

    def begin(self) -> None:
        self._timeline.after(0, self.changed)

    async def changed(self) -> None:
        """Start what is missing, drain what is too much."""
        live = [pod for pod in self._fleet.pods if not pod.terminating]
        for _ in range(self.replicas - len(live)):
            self._fleet.start()
        for pod in sorted(live, key=self._rank)[: max(0, len(live) - self.replicas)]:
            if not pod.lost:
                self._fleet.counts["scaled_in"] += pod.attempt is not None
                await self._fleet.drain(pod)

    def _rank(self, pod: Pod) -> tuple[bool, int, int]:
        """Who goes first: the unready, then the youngest by powers of two of their age, then by a random id."""
        age_s = 0.0 if pod.ready_at is None else self._timeline.now - pod.ready_at
        return pod.ready_at is not None, int(math.log2(1 + age_s)), pod.claimer.worker_id.int


class Deployment(Replicas):
    """KEDA switches between none and one, the HorizontalPodAutoscaler does the rest."""

    def __init__(self, timeline: Timeline, fleet: Fleet, pool: Pool) -> None:
        super().__init__(timeline, fleet, pool.least)
        self._pool = pool
        self._active_at = 0.0
        self._wishes: list[tuple[float, int]] = []  # (moment, replicas that the demand would have)
        self._changes: list[tuple[float, int]] = []  # (moment, pods added)

    def begin(self) -> None:
        self._timeline.every(self._pool.polling_s, self._activate)
        self._timeline.every(HPA_SYNC_S, self._sync)

    async def _activate(self) -> None:
        demand = await self._fleet.demand()
        if demand > 0:
            self._active_at = self._timeline.now
            self.replicas = max(self.replicas, 1)
        elif self._pool.least == 0 and self._timeline.now - self._active_at >= self._pool.idle_s:
            self.replicas = 0
        await self.changed()

    async def _sync(self) -> None:
        now = self._timeline.now
        if self.replicas == 0:
            self._wishes, self._changes = [], []  # the autoscaler is switched off
            return
        self.replicas = self.wanted(now, await self._fleet.demand())
        await self.changed()

    def wanted(self, now: float, demand: int) -> int:
        """The replicas at the next of its looks, within its window and its policies."""
        current = self.replicas
        wish = current if abs(demand / current - 1) <= HPA_TOLERANCE else demand
        wish = min(max(wish, self._pool.least, 1), self._pool.most)
        window_s = min(LONGEST_WINDOW_S, self._pool.idle_s)
        self._wishes = [(at, one) for at, one in self._wishes if at > now - window_s] + [(now, wish)]
        steady = max(one for _, one in self._wishes) if wish < current else wish
        steady = min(steady, current) if wish < current else steady
        self._changes = [(at, added) for at, added in self._changes if at > now - max(UP_PERIOD_S, DOWN_PERIOD_S)]
        wanted = min(max(steady, self._floor(now)), self._ceiling(now))
        if wanted != current:
            self._changes.append((now, wanted - current))
        return wanted

    def _ceiling(self, now: float) -> int:
        began = self.replicas - sum(added for at, added in self._changes if added > 0 and at > now - UP_PERIOD_S)
        return max(self.replicas, began * (100 + UP_PERCENT) // 100, began + UP_PODS)

    def _floor(self, now: float) -> int:
        began = self.replicas - sum(added for at, added in self._changes if added < 0 and at > now - DOWN_PERIOD_S)
        return min(self.replicas, began - DOWN_PODS)


class Jobs:
    """A ScaledJob, strategy `default`: as many Jobs as demand and `most` allow, and `least` beside them.

    So there may be `most` and `least` together. Jobs that have not ended count, whatever their pods do.
    """

    def __init__(self, timeline: Timeline, fleet: Fleet, pool: Pool) -> None:
        self._timeline = timeline
        self._fleet = fleet
        self._pool = pool
        fleet.idle_s = pool.idle_s

    def begin(self) -> None:
        self._timeline.every(self._pool.polling_s, self._poll)

    async def _poll(self) -> None:
        for _ in range(self.missing(len(self._fleet.pods), await self._fleet.demand())):
            self._fleet.start()

    def missing(self, running: int, demand: int) -> int:
        """The Jobs to make at this look."""
        least = self._pool.least
        if running < least:
            return least - running
        return max(0, min(demand, min(demand, self._pool.most) - (running - least)))

    async def changed(self) -> None:
        """A Job that ended is not made again; the next look at the demand makes another."""
