"""Makes faults happen, ends them, and does what a supervisor does: a service that has ended is started again."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

import psutil
import redis

from tests.faults import proxy
from tests.faults.cluster import Cluster
from tests.faults.history import History
from tests.faults.proxy import Kind
from tests.faults.schedule import Fault

DRAIN_DEADLINE_S = 60.0
LINK_KINDS = {
    "cut": Kind.CUT,
    "delay": Kind.DELAY,
    "slow": Kind.SLOW,
    "half_open": Kind.HALF_OPEN,
    "s3_503": Kind.HTTP_503,
    "s3_500": Kind.HTTP_500,
    "s3_hang": Kind.HTTP_HANG,
}


class Injector:
    """For the main thread only: it starts processes."""

    def __init__(self, cluster: Cluster, history: History) -> None:
        self._cluster = cluster
        self._history = history
        self._down: set[str] = set()  # services and stores that a fault keeps away
        self._draining: dict[str, float] = {}
        self._active: list[Fault] = []
        self.exits: list[str] = []  # services that ended although no fault ended them

    def begin(self, fault: Fault) -> bool:
        """False: its target is down already."""
        if fault.target in self._down or fault.target in self._draining:
            return False
        if fault.target in self._cluster.services and not self._cluster.is_running(fault.target):
            return False
        self._history.note("harness", "fault", **{name: getattr(fault, name) for name in fault.__struct_fields__})
        if fault.kind in LINK_KINDS:
            self._break_link(fault)
        else:
            _BEGIN[fault.kind](self, fault)
        self._active.append(fault)
        return True

    def end(self, fault: Fault) -> None:
        if fault not in self._active:
            return
        self._active.remove(fault)
        if fault.kind in LINK_KINDS:
            self._cluster.proxy.set(fault.target, proxy.PASS)
        else:
            _END[fault.kind](self, fault)

    def heal(self) -> None:
        """End every fault."""
        for fault in list(self._active):
            self.end(fault)
        self._cluster.proxy.heal()

    def supervise(self) -> None:
        """Start again what has ended, as any supervisor would."""
        for name in self._cluster.services:
            if name in self._down:
                continue
            overdue = time.monotonic() - self._draining.get(name, time.monotonic()) > DRAIN_DEADLINE_S
            if overdue:
                self._history.note("harness", "drain_overdue", service=name)
            if overdue or not self._cluster.is_running(name):
                if self._draining.pop(name, None) is None:
                    self.exits.append(name)
                    self._history.note("harness", "exit", service=name)
                with contextlib.suppress(KeyError):
                    self._cluster.processes.kill(name)
                self._cluster.start(name)

    # -- kinds -------------------------------------------------------------------------------------------------------

    def _break_link(self, fault: Fault) -> None:
        kind = LINK_KINDS[fault.kind]
        broken = proxy.Fault(kind, delay_s=fault.amount, jitter_s=fault.amount, bytes_per_s=fault.amount)
        self._cluster.proxy.set(fault.target, broken)

    def _kill(self, fault: Fault) -> None:
        self._down.add(fault.target)
        self._cluster.kill(fault.target, alone=fault.kind == "kill_daemon")

    def _start(self, fault: Fault) -> None:
        self._down.discard(fault.target)
        self._cluster.start(fault.target)

    def _drain(self, fault: Fault) -> None:
        self._draining[fault.target] = time.monotonic()
        os.kill(self._cluster.processes.pid(fault.target), signal.SIGTERM)

    def _pause(self, fault: Fault) -> None:
        self._cluster.pause(fault.target, alone=fault.kind == "pause_daemon")

    def _resume(self, fault: Fault) -> None:
        with contextlib.suppress(KeyError, psutil.NoSuchProcess):
            self._cluster.resume(fault.target)

    def _stop_store(self, fault: Fault) -> None:
        self._down.add(fault.target)
        stores = self._cluster.stack.processes
        if fault.kind == "postgres_restart":
            stores.stop(fault.target)
        else:
            stores.kill(fault.target)

    def _start_store(self, fault: Fault) -> None:
        self._down.discard(fault.target)
        stack = self._cluster.stack
        {"postgres": stack.start_postgres, "valkey": stack.start_valkey, "s3": stack.start_s3}[fault.target]()

    def _flush(self, _: Fault) -> None:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self._cluster.stack.redis_url) as valkey:
            valkey.flushall()

    def _store_tree(self, name: str) -> list[psutil.Process]:
        with contextlib.suppress(KeyError, psutil.NoSuchProcess):
            store = psutil.Process(self._cluster.stack.processes.pid(name))
            return [store, *store.children(recursive=True)]
        return []

    def _pause_store(self, fault: Fault) -> None:
        self._down.add(fault.target)
        for process in self._store_tree(fault.target):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def _resume_store(self, fault: Fault) -> None:
        self._down.discard(fault.target)
        for process in self._store_tree(fault.target):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _fill_disk(self, fault: Fault) -> None:
        self._cluster.fill_disk(fault.target)

    def _free_disk(self, fault: Fault) -> None:
        self._cluster.free_disk(fault.target)

    def _shift_clock(self, fault: Fault) -> None:
        self._cluster.shift_clock(fault.target, int(fault.amount))

    def _restore_clock(self, fault: Fault) -> None:
        self._cluster.shift_clock(fault.target, 0)

    def _nothing(self, _: Fault) -> None:
        pass


Act = Callable[[Injector, Fault], None]
_KILLS = ("kill", "kill_worker", "kill_daemon")
_PAUSES = ("pause", "pause_worker", "pause_daemon")
_RESTARTS = ("valkey_restart", "postgres_restart", "postgres_kill", "s3_away")
_BEGIN: dict[str, Act] = {
    **dict.fromkeys(_KILLS, Injector._kill),
    **dict.fromkeys(_PAUSES, Injector._pause),
    **dict.fromkeys(_RESTARTS, Injector._stop_store),
    "drain": Injector._drain,
    "valkey_flush": Injector._flush,
    "store_pause": Injector._pause_store,
    "disk_full": Injector._fill_disk,
    "clock_jump": Injector._shift_clock,
}
_END: dict[str, Act] = {
    **dict.fromkeys(_KILLS, Injector._start),
    **dict.fromkeys(_PAUSES, Injector._resume),
    **dict.fromkeys(_RESTARTS, Injector._start_store),
    "drain": Injector._nothing,
    "valkey_flush": Injector._nothing,
    "store_pause": Injector._resume_store,
    "disk_full": Injector._free_disk,
    "clock_jump": Injector._restore_clock,
}
