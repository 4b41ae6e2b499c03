"""Runs of two processes without the imports of each: the ranks are forked from servers that have the engine in memory.

The launchers are left to the tests that are about them (test_processes.py's two machines, test_run.py's accelerate,
test_train_command.py's two processes) and to tests/e2e.
"""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from fusion_local.stack import HOST, free_port

SERVER = Path(__file__).with_name("rank_server.py")
DEADLINE_S = 200
COUNT = 2


class Ended(NamedTuple):
    """The first exit code that is not 0, negative for a signal, and what the ranks printed."""

    returncode: int
    stderr: str


class FailedError(Exception):
    """A rank's exit code is not 0: without it the others wait in vain, and are ended as a launcher ends them."""


class Ranks:
    """Context manager. As many servers as ranks: each has drawn its own seed for the hashes of str, as real ranks have.

    The servers take turns at being the first rank, so that neither do a run and its resumption share a seed.
    """

    def __enter__(self) -> Self:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        self._servers = [
            subprocess.Popen(
                [sys.executable, str(SERVER)], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(COUNT)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.kill()
            server.communicate()

    def attempt(self, run_dir: Path, **environment: str) -> Ended:
        """What a worker starts for this run."""
        return self.launch(run_dir, "-m", "fusion_engine", str(run_dir), **environment)

    def launch(self, run_dir: Path, *program: str, **environment: str) -> Ended:
        """The program as two ranks, `environment` added to what a launcher sets; their output stays in the folder."""
        port = free_port()
        self._servers.append(self._servers.pop(0))
        self._pids: list[int] = []
        logs = [run_dir / f"rank-{rank}.log" for rank in range(COUNT)]
        with ThreadPoolExecutor(COUNT) as threads:
            ranks = [
                threads.submit(self._run_rank, rank, [*program], _launched(rank, port) | environment, logs[rank])
                for rank in range(COUNT)
            ]
            wait(ranks, timeout=DEADLINE_S, return_when=FIRST_EXCEPTION)
            for pid in [*self._pids]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return Ended(next(filter(None, map(_code, ranks)), 0), "\n".join(log.read_text() for log in logs))

    def _run_rank(self, rank: int, words: list[str], environment: dict[str, str], log: Path) -> None:
        """Raises FailedError."""
        server = self._servers[rank]
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({"words": words, "environment": environment, "log": str(log)}) + "\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
        self._pids.append(pid)
        code = int(server.stdout.readline())
        self._pids.remove(pid)
        if code:
            raise FailedError(code)


def _code(rank: Future[None]) -> int:
    error = rank.exception()
    if error is None:
        return 0
    if isinstance(error, FailedError):
        return int(error.args[0])
    raise error


def _launched(rank: int, port: int) -> dict[str, str]:
    """What torch.distributed.run sets on one machine."""
    of_all = {"WORLD_SIZE": str(COUNT), "LOCAL_WORLD_SIZE": str(COUNT), "MASTER_ADDR": HOST, "MASTER_PORT": str(port)}
    return of_all | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
