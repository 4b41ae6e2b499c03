"""The API as a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fusion_local.stack import HOST, free_port


class Server:
    """`python -m fusion_api` on a port of its own."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        self.log = log
        self.environment = os.environ | environment | {"FUSION_PORT": str(port)}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fusion_api"], env=self.environment, stdout=file, stderr=file
            )

    def wait_ready(self, deadline_s: float = 60) -> None:
        until = time.monotonic() + deadline_s
        while True:
            try:
                if httpx.get(f"{self.url}/ready", timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def serving(environment: Mapping[str, str], log: Path) -> Iterator[Server]:
    """A server that is ready, and gone at the block's end."""
    server = Server(dict(environment), log)
    try:
        server.wait_ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait(10)
        sys.stdout.write(server.log.read_text())  # pytest shows it where a test has failed
