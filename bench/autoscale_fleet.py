"""Stub workers, a pod each: claim, renew, checkpoint, release and complete by the real SQL, as the daemon does.

They train nothing: a step takes its time and that is all. Leases are renewed where somebody looks at them, right before
each sweep, and by a worker that dies at the moment of its death, which is the latest heartbeat that it could have sent.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID, uuid4

import msgspec
from autoscale_day import Arrival, Nature, Supposed
from autoscale_nodes import Node, Nodes
from autoscale_timeline import Due, Timeline
from fusion_core import s3_keys
from fusion_core.db import attempts, checkpoints, jobs
from fusion_core.db.attempts import Attempt, Claimer, NewModel
from fusion_core.db.checkpoints import NewCheckpoint
from fusion_core.db.pool import Connection, queries
from fusion_core.db.rows import JobRow
from fusion_core.job_spec import Hyperparams, TrainSpec
from fusion_core.money import DEFAULT_PRICES, estimate_train
from queue_world import CONFIG, MANIFEST, POOL, Account, new_job

LEASE_TTL_S = 20.0


class Pod:
    """One worker. `terminating` from its SIGTERM on; what it waits for is in `_dues`."""

    def __init__(self, node: Node, timeline: Timeline, worker_id: UUID) -> None:
        self.node = node
        self.claimer = Claimer(worker_id=worker_id, pool=POOL)
        self.ready_at: float | None = None
        self.terminating = False
        self.lost = False
        self.job: JobRow | None = None
        self.attempt: Attempt | None = None
        self.trained_from = 0.0  # the moment that training began at
        self._timeline = timeline
        self._dues: list[Due] = []

    @property
    def idle(self) -> bool:
        return self.ready_at is not None and self.job is None and not self.terminating and not self.lost

    def later(self, delay_s: float, action: Callable[[], Awaitable[None]]) -> None:
        self._dues.append(self._timeline.after(delay_s, action))

    def call_off(self) -> None:
        for due in self._dues:
            due.call_off()
        self._dues.clear()


class Fleet:
    """The pods of one pool, and what became of the jobs. `idle_s`: a pod is for one job, and waits so long for it."""

    def __init__(
        self, conn: Connection, timeline: Timeline, nodes: Nodes, supposed: Supposed, *, checkpoint_s: float
    ) -> None:
        self._conn = conn
        self._timeline = timeline
        self._nodes = nodes
        self._supposed = supposed
        self._checkpoint_s = checkpoint_s
        self._nature = Nature(supposed, spot=False)
        self.idle_s: float | None = None
        self.pods: list[Pod] = []
        self.submitted: list[UUID] = []
        self.completed = 0
        self.trained_s: dict[UUID, float] = {}  # job -> how far it was trained, whatever of it was kept
        self.repeated_s = 0.0
        self.lost_steps = 0
        self.most_lost_s = 0.0
        self.counts: Counter[str] = Counter()
        self._held = 0
        nodes.watch(self._notice, self._loss)

    def tell(self, changed: Callable[[], Awaitable[None]], lost: Callable[[], Awaitable[None]]) -> None:
        """Whom to tell that a pod has gone that nobody asked to, and that a worker has died."""
        self._changed, self._died = changed, lost

    # -- customers ---------------------------------------------------------------------------------------------------

    async def submit(self, account: Account, arrival: Arrival) -> None:
        new = new_job(account, f"{len(self.submitted)}")
        hyperparams = Hyperparams(output_name="grown", cycles=1, steps_per_cycle=arrival.steps)
        assert isinstance(new.spec, TrainSpec)
        plan = new.spec.growth_plan
        new = msgspec.structs.replace(
            new,
            spec=msgspec.structs.replace(new.spec, hyperparams=hyperparams),
            estimate=estimate_train(DEFAULT_PRICES, plan.params_before, plan.params_after, hyperparams.training_tokens),
        )
        job, _ = await jobs.submit_job(self._conn, new)
        self.submitted.append(job.id)
        await self.offer()

    async def demand(self) -> int:
        """What the orchestrator answers to GET /demand/{pool}."""
        slots = {row["pool"]: int(row["slots"]) async for row in queries.pool_demand(self._conn)}
        return slots.get(POOL, 0)

    # -- pods --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        node, ready_in_s = self._nodes.take()
        pod = Pod(node, self._timeline, self._nature.worker_id())
        self.pods.append(pod)
        pod.later(ready_in_s, partial(self._ready, pod))

    async def drain(self, pod: Pod) -> None:
        """SIGTERM: an idle one goes at once, one that trains saves first, one that loads has nothing to save."""
        pod.terminating = True
        pod.call_off()
        if pod.attempt is None:
            await self._gone(pod)
        elif pod.node.phase == "training":
            step = self._stop_training(pod)
            self._nodes.enter(pod.node, "saving")
            pod.later(self._supposed.drain_s, partial(self._release, pod, step))
        else:
            await self._release(pod, None)

    async def offer(self) -> None:
        """The doorbell: idle workers claim until nothing may be claimed."""
        while self._held < len(self.submitted) - self.completed and (idle := [pod for pod in self.pods if pod.idle]):
            pod, attempt_id = idle[self._nature.choose(len(idle))], uuid4()
            job = await attempts.claim_next(self._conn, pod.claimer, attempt_id, LEASE_TTL_S)
            if job is None:
                return
            await self._begin(pod, job, Attempt(job.id, job.lease_epoch, attempt_id))

    async def beat(self) -> None:
        """The heartbeats of everybody who is alive."""
        for pod in self.pods:
            if pod.attempt is not None and not pod.lost:
                await attempts.renew(self._conn, pod.attempt, LEASE_TTL_S)
            elif pod.idle:
                await self._report(pod, "idle")

    async def _ready(self, pod: Pod) -> None:
        pod.ready_at = self._timeline.now
        await queries.register_worker(
            self._conn,
            id=pod.claimer.worker_id,
            name="stub",
            pool=POOL,
            spec_version=pod.claimer.spec_version,
            capabilities=[],
            version="1",
            gpus=1,
        )
        await self._wait(pod)

    async def _wait(self, pod: Pod) -> None:
        self._nodes.enter(pod.node, "idle")
        if self.idle_s is not None:
            pod.later(self.idle_s, partial(self._gone, pod))
        await self.offer()

    async def _gone(self, pod: Pod) -> None:
        self.pods.remove(pod)
        if pod.ready_at is not None:
            await self._report(pod, "gone")
        self._nodes.leave(pod.node)

    async def _report(self, pod: Pod, state: str) -> None:
        job_id = None if pod.job is None else pod.job.id
        await queries.worker_seen(self._conn, state=state, job_id=job_id, id=pod.claimer.worker_id)

    # -- attempts ----------------------------------------------------------------------------------------------------

    async def _begin(self, pod: Pod, job: JobRow, attempt: Attempt) -> None:
        pod.call_off()
        pod.job, pod.attempt = job, attempt
        self._held += 1
        kept_s = job.last_checkpoint_step * self._supposed.step_s
        lost_s = self.trained_s.get(job.id, 0.0) - kept_s
        self.repeated_s += lost_s
        self.lost_steps += int(lost_s // self._supposed.step_s)
        self.most_lost_s = max(self.most_lost_s, lost_s)
        self.trained_s[job.id] = kept_s
        self._nodes.enter(pod.node, "loading")
        await self._report(pod, "busy")
        pod.later(self._supposed.load_s, partial(self._train, pod))

    async def _train(self, pod: Pod) -> None:
        assert pod.job is not None
        self._nodes.enter(pod.node, "training")
        pod.trained_from = self._timeline.now
        steps = pod.job.spec["hyperparams"]["steps_per_cycle"] - pod.job.last_checkpoint_step
        pod.later(steps * self._supposed.step_s, partial(self._complete, pod))
        pod.later(self._checkpoint_s, partial(self._snapshot, pod))

    async def _snapshot(self, pod: Pod) -> None:
        pod.later(self._supposed.upload_s, partial(self._commit, pod, self._step(pod)))
        pod.later(self._checkpoint_s, partial(self._snapshot, pod))

    async def _commit(self, pod: Pod, step: int) -> None:
        assert pod.attempt is not None
        prefix = s3_keys.checkpoint(s3_keys.attempt(*msgspec.structs.astuple(pod.attempt)), step)
        checkpoint = NewCheckpoint(step=step, turn_end=False, s3_prefix=prefix, manifest=MANIFEST, format_version=1)
        await checkpoints.commit_checkpoint(self._conn, pod.attempt, checkpoint)

    async def _complete(self, pod: Pod) -> None:
        assert pod.attempt is not None
        self._stop_training(pod)
        prefix = s3_keys.export(s3_keys.attempt(*msgspec.structs.astuple(pod.attempt)))
        model = NewModel(name="grown", params=2, config=CONFIG, s3_prefix=prefix, manifest=MANIFEST)
        await attempts.complete_training(self._conn, pod.attempt, model, {})
        self.completed += 1
        self._let_go(pod)
        if self.idle_s is not None:
            await self._gone(pod)
        else:
            await self._report(pod, "idle")
            await self._wait(pod)

    async def _release(self, pod: Pod, step: int | None) -> None:
        assert pod.attempt is not None
        if step:
            await self._commit(pod, step)
        await attempts.release(self._conn, pod.attempt)
        self._let_go(pod)
        await self._gone(pod)
        await self.offer()

    def _let_go(self, pod: Pod) -> None:
        pod.call_off()
        pod.job = pod.attempt = None
        self._held -= 1

    def _step(self, pod: Pod) -> int:
        """The steps done by now."""
        assert pod.job is not None
        trained_s = self._timeline.now - pod.trained_from
        return pod.job.last_checkpoint_step + int(trained_s // self._supposed.step_s)

    def _stop_training(self, pod: Pod) -> int:
        assert pod.job is not None
        self.trained_s[pod.job.id] += self._timeline.now - pod.trained_from
        return self._step(pod)

    # -- interruptions -----------------------------------------------------------------------------------------------

    async def _notice(self, node: Node) -> None:
        """The node is drained within its owner's notice."""
        pod = next(pod for pod in self.pods if pod.node is node)
        if not pod.terminating:
            self.counts["noticed"] += pod.attempt is not None
            await self.drain(pod)
            await self._changed()

    async def _loss(self, node: Node) -> None:
        """The node is gone. Kubernetes misses the pod after a while, the orchestrator the lease."""
        pod = next(pod for pod in self.pods if pod.node is node)
        pod.call_off()
        pod.lost = True
        if pod.attempt is not None:
            self.counts["unnoticed"] += 1
            if node.phase == "training":
                self._stop_training(pod)
            await attempts.renew(self._conn, pod.attempt, LEASE_TTL_S)
            self._held -= 1
            await self._died()

        async def missed() -> None:
            self.pods.remove(pod)
            await self._changed()

        self._timeline.after(self._supposed.node_missed_s, missed)
