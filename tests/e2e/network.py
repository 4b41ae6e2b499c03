"""Machines with a network of their own: namespaces (network_namespaces(7)) joined by a bridge, and a cable to cut."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

DEADLINE_S = 20


class NotPermittedError(Exception):
    """This machine, or this user, makes no network namespaces."""


class Network:
    """So many machines. Use as a context manager, which raises NotPermittedError where there can be none."""

    def __init__(self, machines: int) -> None:
        self._machines = range(machines)
        self._name = f"fsn{os.getpid()}"
        self._prefix = f"198.18.{os.getpid() % 256}"  # for tests of networks (RFC 2544)

    def __enter__(self) -> "Network":
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise NotPermittedError("network namespaces need root, and ip of iproute2")
        try:
            self._lay()
        except NotPermittedError:
            self._clear()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    @property
    def gateway(self) -> str:
        """Where the machines reach this one."""
        return f"{self._prefix}.254"

    def address(self, machine: int) -> str:
        return f"{self._prefix}.{machine + 1}"

    def within(self, machine: int) -> list[str]:
        """What a command is to begin with, to run on that machine; it takes the place of these words' process.

        gloo would look for the address of the host's name, which the machines share.
        """
        return ["ip", "netns", "exec", f"{self._name}-{machine}", "env", "GLOO_SOCKET_IFNAME=eth0"]

    def cut(self, machine: int) -> None:
        """Whatever is on its way is lost, and nobody is told."""
        _ip("link", "set", f"{self._name}-{machine}", "down")

    def mend(self, machine: int) -> None:
        _ip("link", "set", f"{self._name}-{machine}", "up")

    def _lay(self) -> None:
        _ip("link", "add", self._name, "type", "bridge")
        _ip("address", "add", f"{self.gateway}/24", "dev", self._name)
        _ip("link", "set", self._name, "up")
        for machine in self._machines:
            name = f"{self._name}-{machine}"
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", self._name, "up")
            _ip("-n", name, "address", "add", f"{self.address(machine)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")

    def _clear(self) -> None:
        for machine in self._machines:
            for kind in ("link", "netns"):
                with suppress(NotPermittedError):  # what was never made
                    _ip(kind, "del", f"{self._name}-{machine}")
        with suppress(NotPermittedError):
            _ip("link", "del", self._name)


def _ip(*words: str) -> None:
    """Raises NotPermittedError with what ip says."""
    argv: Sequence[str] = ["ip", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode:
        raise NotPermittedError(f"{' '.join(argv)}: {done.stderr.strip()}")
