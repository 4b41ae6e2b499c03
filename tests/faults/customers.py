"""Customers with the real client: they submit, submit again, cancel, stop, resume, follow and pry, and note it all."""

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import httpx
from fusion_client import Fusion
from fusion_client.errors import ApiError, DeadlineError, FusionError, NotFoundError
from fusion_client.models import TERMINAL_STATUSES
from fusion_client.transport import Retries

from tests.faults.cluster import Cluster
from tests.faults.history import History
from tests.faults.site import Account

IMPATIENT = Retries(attempts=2, first_wait_s=0.1, longest_wait_s=0.5)
REQUEST_S = 8.0
FOLLOW_S = 7.0  # then the other api is asked, from the last event seen


class Work(NamedTuple):
    """What a customer asks for, about every how many seconds, and which shares it cancels, or stops and resumes."""

    hyperparams: dict[str, Any]
    every_s: float
    most_jobs: int = 1_000_000
    cancelled: float = 0.08
    stopped: float = 0.08


class Customer:
    """One account. Its threads end when `leave` is set; errors of the network are what it is there to see."""

    def __init__(
        self, cluster: Cluster, account: Account, history: History, seed: int, work: Work, apis: Sequence[str]
    ) -> None:
        self.work = work
        self.account = account
        self.jobs: dict[str, str] = {}  # key -> id, of POSTs that were answered
        self.other: Customer | None = None  # into whose jobs this one pries
        self.leave = threading.Event()
        self.quiet = threading.Event()  # nothing new is asked for
        self._history = history
        self._random = random.Random(f"{seed}:{account.name}")
        self._clients = [self._client(cluster.customer_url(account.name, api)) for api in apis]
        self._threads: list[threading.Thread] = []
        self._last: dict[str, Any] = {}

    def _client(self, url: str) -> Fusion:
        client = Fusion(url, self.account.secret, retries=IMPATIENT)
        client._transport.http.timeout = httpx.Timeout(REQUEST_S, connect=3.0)
        return client

    def start(self) -> None:
        self._submitting = self._spawn(self._submit_for_ever)
        self._spawn(self._look_for_ever)

    def stop(self) -> None:
        self.leave.set()
        for thread in self._threads:
            thread.join(60)
        for client in self._clients:
            client.close()

    def _spawn(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except Exception as error:  # a bug of the harness or of the client: the checker reports it
                self._note("customer_broke", error=repr(error))
                raise

        thread = threading.Thread(target=guarded, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _note(self, what: str, **data: Any) -> None:
        self._history.note(self.account.name, what, **data)

    # -- asking for things ---------------------------------------------------------------------------------------------

    def _submit_for_ever(self) -> None:
        number = 0
        while not self.quiet.is_set() and number < self.work.most_jobs:
            number += 1
            self.submit(f"{self.account.name}-{number}")
            if self._random.random() < 0.3:
                self._repeat()
            self.quiet.wait(self.work.every_s * self._random.uniform(0.5, 1.5))

    def submit(self, key: str) -> str | None:
        """POST until it is answered, by whichever api; None when we left before."""
        while not self.leave.is_set():
            number = self._random.randrange(len(self._clients))
            try:
                job = self._clients[number].submit(self._body(key), key)
            except ApiError as error:
                self._note("submit_refused", key=key, status=error.status, code=error.code, api=number)
                self.leave.wait(0.3)
            except FusionError as error:
                self._note("submit_unanswered", key=key, error=str(error)[:200], api=number)
            else:
                self._note("acknowledged", key=key, job=job.id, api=number)
                if key not in self.jobs:
                    self._take(key, job.id)
                return job.id
        return None

    def _take(self, key: str, job_id: str) -> None:
        self.jobs[key] = job_id
        self._spawn(lambda: self._follow(job_id))
        self._perhaps_end(job_id)

    def _body(self, key: str) -> dict[str, Any]:
        hyperparams = {"output_name": key, **self.work.hyperparams}
        ids = {"base_model_id": str(self.account.base_model_id), "dataset_id": str(self.account.dataset_id)}
        return {"type": "train", "hyperparams": hyperparams, **ids}

    def _repeat(self) -> None:
        if self.jobs:
            self.submit(self._random.choice(list(self.jobs)))

    def _perhaps_end(self, job_id: str) -> None:
        """Some jobs are cancelled or stopped on their way, and the stopped ones resumed."""
        chance, wait_s = self._random.random(), self._random.uniform(0.0, 6.0)
        if chance < self.work.cancelled:
            self._spawn(lambda: self._later(wait_s, job_id, "cancel_job"))
        elif chance < self.work.cancelled + self.work.stopped:
            self._spawn(lambda: self._stop_and_resume(wait_s, job_id))

    def _later(self, wait_s: float, job_id: str, call: str) -> None:
        self.leave.wait(wait_s)
        self._note("asks", job=job_id, call=call)
        self._insist(job_id, call)

    def _insist(self, job_id: str, call: str) -> None:
        while not self.leave.is_set():
            client = self._clients[self._random.randrange(len(self._clients))]
            try:
                getattr(client, call)(job_id)
            except ApiError as error:
                if error.status < 500:  # resume of a job that has ended, or has not stopped yet
                    return
                self.leave.wait(0.3)
            except FusionError:
                self.leave.wait(0.3)
            else:
                return

    def _stop_and_resume(self, wait_s: float, job_id: str) -> None:
        self._later(wait_s, job_id, "stop_job")
        while not self.leave.is_set():
            self.leave.wait(1.0)
            status = self._last.get(job_id, (None,))[0]
            if status in TERMINAL_STATUSES:
                return
            if status == "stopped":
                self._insist(job_id, "resume_job")

    # -- seeing things -------------------------------------------------------------------------------------------------

    def _follow(self, job_id: str) -> None:
        """The job's events by server-sent events, now from one api, now from the other."""
        after = turn = 0
        while not self.leave.is_set():
            turn += 1
            try:
                for event in self._clients[turn % len(self._clients)].events(job_id, after, timeout_s=FOLLOW_S):
                    self._note("event", job=job_id, seq=event.seq, type=event.type, after=after)
                    after = event.seq
                    if event.type in TERMINAL_STATUSES:
                        return
            except DeadlineError:
                continue
            except FusionError as error:
                self._note("stream_broke", job=job_id, error=str(error)[:200])
                self.leave.wait(0.5)

    def _look_for_ever(self) -> None:
        """Poll the jobs that have not ended; now and then look at what is another's."""
        while not self.leave.wait(0.5):
            for job_id in list(self.jobs.values()):
                if self._last.get(job_id, ("",))[0] not in TERMINAL_STATUSES:
                    self._look(job_id)
            self._pry()

    def _look(self, job_id: str) -> None:
        client = self._clients[self._random.randrange(len(self._clients))]
        try:
            job = client.get_job(job_id)
        except NotFoundError:
            self._note("vanished", job=job_id)
        except FusionError:
            return
        else:
            seen = (job.status, job.retries, job.last_checkpoint_step)
            if self._last.get(job_id) != seen:
                self._last[job_id] = seen
                self._note("saw", job=job_id, status=seen[0], retries=seen[1], checkpoint=seen[2])

    def _pry(self) -> None:
        foreign = list(self.other.jobs.values()) if self.other is not None else []
        if not foreign:
            return
        client = self._clients[self._random.randrange(len(self._clients))]
        job_id = self._random.choice(foreign)
        try:
            client.get_job(job_id)
        except FusionError:
            pass
        else:
            self._note("saw_anothers", job=job_id)
        try:
            listed = {job.id for job in client.list_jobs(limit=100)}
        except FusionError:
            return
        for job_id in listed & set(foreign):
            self._note("saw_anothers", job=job_id)

    def count_over(self) -> int:
        """Jobs that this customer has seen end."""
        return sum(self._last.get(job, ("",))[0] in TERMINAL_STATUSES for job in self.jobs.values())

    def is_submitting(self) -> bool:
        return self._submitting.is_alive()
