"""The real processes of Fusion, each reaching each store through a link of its own that can be broken."""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import httpx
import psutil
from fusion_local.processes import Processes, base_environment, wait_until
from fusion_local.stack import HOST, Stack, free_port

from tests.faults.engine_site import make_engine_account
from tests.faults.proxy import Proxy
from tests.faults.site import Account, prepare

HERE = Path(__file__).parent
CHAIN_TRAINER, CLOCK_SHIFT = HERE / "chain_trainer.py", HERE / "clock_shift.c"
POOL, ENGINE_POOL = "training", "engine"
STORES = ("postgres", "valkey", "s3")
# A lease of seconds instead of 20, and all that goes with it in proportion.
QUICK: dict[str, object] = {
    "lease_ttl_s": 4,
    "heartbeat_s": 1,
    "sweep_s": 0.5,
    "sweep_gap_s": 3,
    "ring_again_s": 2,
    "idle_poll_s": 1,
    "drain_grace_s": 10,
    "isolation_limit_s": 60,
    "log_format": "json",
}
DISK_BYTES, MIN_FREE_BYTES = 32 * 2**20, 4 * 2**20


class Cluster:
    """Context manager: everything runs inside, nothing is left after. For the main thread only."""

    def __init__(
        self,
        root: Path,
        *,
        seed: int = 0,
        workers: int = 4,
        apis: int = 2,
        orchestrators: int = 2,
        settings: Mapping[str, object] = QUICK,
        step_s: float = 0.1,
        checkpoint_every: int = 10,
        engine: bool = False,
    ) -> None:
        """With `engine` there is one worker more, with the real trainer, and an api that sends jobs to it."""
        self.root = root.resolve()
        self.stack = Stack(self.root / "stack", durable=False)
        self.processes = Processes(self.root / "services")
        self.proxy = Proxy(seed)
        self.apis = tuple(f"api-{number}" for number in range(apis))
        self.orchestrators = tuple(f"orchestrator-{number}" for number in range(orchestrators))
        self.workers = tuple(f"worker-{number}" for number in range(workers))
        self.engine_api, self.engine_worker = ("api-engine", "worker-engine") if engine else ("", "")
        self._settings = dict(settings)
        self._trainer = [sys.executable, str(CHAIN_TRAINER), "--step-s", str(step_s)]
        self._trainer += ["--checkpoint-every", str(checkpoint_every)]
        self._environments: dict[str, dict[str, str]] = {}
        self._ports: dict[str, int] = {}
        self._mounted: list[Path] = []
        self.can_fill_disks = os.geteuid() == 0
        self.can_shift_clocks = shutil.which("cc") is not None
        self.accounts: tuple[Account, ...]
        self.engine_account: Account | None = None

    @property
    def services(self) -> tuple[str, ...]:
        return (*self.apis, *self.orchestrators, *self.workers, *filter(None, (self.engine_api, self.engine_worker)))

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.proxy.__enter__()
            self.stack.start()
            self.accounts = asyncio.run(prepare(self.stack, ("ada", "grace")))
            if self.engine_worker:
                self.engine_account = make_engine_account(self.stack, self.root)
            self._customer_s3 = self.proxy.link("customer:s3", self.stack.s3_port)
            self._compile_clock_shift()
            for name in self.services:
                self._environments[name] = self._environment(name)
                self.start(name)
            wait_until(self._apis_ready, "an api", self.processes)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.services:
            with contextlib.suppress(KeyError, psutil.NoSuchProcess):
                self.resume(name)
        for name in self.services:
            with contextlib.suppress(KeyError):
                self.processes.kill(name)
        self.stack.stop()
        self.proxy.__exit__()
        for folder in self._mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False, timeout=10)

    def _compile_clock_shift(self) -> None:
        self._clock_library = self.root / "clock_shift.so"
        if self.can_shift_clocks:
            command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(self._clock_library), str(CLOCK_SHIFT)]
            subprocess.run(command, check=True, timeout=60)

    def _environment(self, name: str) -> dict[str, str]:
        """All that a service sees: every store through a link of its own."""
        own = self._settings | self._own_settings(name)
        through = {
            "database_url": self._through(name, "postgres", self.stack.database_url()),
            "redis_url": self._through(name, "valkey", self.stack.redis_url),
            "s3_endpoint": self._through(name, "s3", self.stack.s3_endpoint),
            "s3_public_endpoint": f"http://{HOST}:{self._customer_s3}",
        }
        variables = {f"FUSION_{key.upper()}": str(value) for key, value in (own | through).items()}
        return base_environment() | self.stack.environment() | variables | self._clock_environment(name)

    def _through(self, name: str, store: str, url: str) -> str:
        parts = urlsplit(url)
        assert parts.port is not None
        port = self.proxy.link(f"{name}:{store}", parts.port)
        return urlunsplit(parts._replace(netloc=f"{parts.netloc.rsplit(':', 1)[0]}:{port}"))

    def _own_settings(self, name: str) -> dict[str, object]:
        if name in (*self.workers, self.engine_worker):
            own = {"device": "cpu", "work_dir": self._work_dir(name), "min_free_bytes": MIN_FREE_BYTES}
            if name == self.engine_worker:
                return {**own, "pool": ENGINE_POOL, "checkpoint_every_s": 0.001}
            return {**own, "pool": POOL, "trainer_command": shlex.join(self._trainer)}
        self._ports[name] = free_port()
        pool = ENGINE_POOL if name == self.engine_api else POOL
        return {"port": self._ports[name], "training_pool": pool, "requests_per_minute": 100_000}

    def _work_dir(self, name: str) -> Path:
        """A disk of its own where we may mount one, so that it can be filled."""
        folder = self.root / name
        folder.mkdir()
        if self.can_fill_disks:
            size = f"size={DISK_BYTES * (8 if name == self.engine_worker else 1)}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True, timeout=10)
            self._mounted.append(folder)
        return folder

    def _clock_environment(self, name: str) -> dict[str, str]:
        if not self.can_shift_clocks or not name.startswith("worker-"):
            return {}
        file = self.root / f"{name}.clock"
        file.write_bytes(struct.pack("q", 0))
        return {"LD_PRELOAD": str(self._clock_library), "CLOCK_SHIFT_FILE": str(file)}

    def _apis_ready(self) -> bool:
        try:
            apis = filter(None, (*self.apis, self.engine_api))
            return all(httpx.get(f"{self.url(name)}/ready", timeout=6).status_code == 200 for name in apis)
        except httpx.TransportError:
            return False

    def url(self, api: str) -> str:
        """The api itself, past every link."""
        return f"http://{HOST}:{self._ports[api]}"

    def customer_url(self, customer: str, api: str) -> str:
        """The api as one customer reaches it, over a link `<customer>:<api>`."""
        return f"http://{HOST}:{self.proxy.link(f'{customer}:{api}', self._ports[api])}"

    # -- what may happen to a service --------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        module = f"fusion_{name.partition('-')[0]}"
        environment = self._environments[name]
        if name in (*self.workers, self.engine_worker):  # another machine: drains by the rule hold for a name
            environment = environment | {"FUSION_NAME": f"{name}-{uuid4().hex[:8]}"}
        self.processes.start(name, [sys.executable, "-m", module], env=environment)

    def is_running(self, name: str) -> bool:
        with contextlib.suppress(KeyError, psutil.NoSuchProcess):
            return psutil.Process(self.processes.pid(name)).status() != psutil.STATUS_ZOMBIE
        return False

    def kill(self, name: str, *, alone: bool = False) -> None:
        """SIGKILL a service: with its whole tree, as its machine would go, or its daemon `alone`."""
        if alone:
            os.kill(self.processes.pid(name), signal.SIGKILL)
        self.processes.kill(name)

    def pause(self, name: str, *, alone: bool = False) -> None:
        """SIGSTOP, the whole tree as a frozen machine or the daemon alone."""
        for process in self._tree(name, alone):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self, name: str) -> None:
        for process in self._tree(name, False):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _tree(self, name: str, alone: bool) -> list[psutil.Process]:
        """The daemon first. Raises KeyError or psutil.NoSuchProcess when it does not run."""
        daemon = psutil.Process(self.processes.pid(name))
        return [daemon] if alone else [daemon, *daemon.children(recursive=True)]

    def fill_disk(self, name: str) -> None:
        """Leave nothing free on a worker's disk, whatever it writes meanwhile."""
        ballast = self.root / name / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(b"\0" * 2**16)
                file.flush()

    def free_disk(self, name: str) -> None:
        (self.root / name / "ballast").unlink(missing_ok=True)

    def shift_clock(self, name: str, seconds: int) -> None:
        with (self.root / f"{name}.clock").open("r+b") as file:
            file.write(struct.pack("q", seconds))

    def trainers(self) -> list[psutil.Process]:
        """Processes that name a run directory of any of our workers."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(str(self.root) in part and "/runs/" in part for part in process.info["cmdline"] or ())
        ]
