"""The whole of Fusion on one machine: the stores, the services as separate processes, an account and its key."""

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import UUID, uuid4

import httpx
from fusion_core import operator_tokens
from fusion_core.api_keys import SCOPES, new_secret, secret_sha256, visible_prefix
from fusion_core.db.migrate import migrate
from fusion_core.db.pool import Connection, connect, queries
from rich.console import Console

from fusion_local.processes import ENDING_SIGNALS, base_environment, kill_leftovers, wait_until
from fusion_local.run_lock import RunLock
from fusion_local.stack import HOST, Service, Stack, free_port, free_ports, write_private

TRAINING_POOL, INGEST_POOL = "local", "cpu"
TRAINER, READER = "worker-training", "worker-cpu"
PREFERRED_PORT = 8000
CHECKPOINT_EVERY_S = 10


class Access(NamedTuple):
    """How a customer reaches the local API, and the person on call the admin endpoints."""

    url: str
    key: str
    is_new: bool
    admin_url: str


class LocalFusion:
    """Context manager: everything runs inside, nothing is left after. For the main thread only."""

    def __init__(self, root: Path, console: Console) -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self._console = console
        self._lock = RunLock(self.root)
        self._handlers: dict[signal.Signals, Any] = {}
        self.stack: Stack
        self.access: Access

    def __enter__(self) -> Self:
        """Raises AlreadyRunningError, StackError, ChildDiedError or TimeoutError."""
        self._lock.take()
        self.stack = Stack(self.root)
        self._handlers = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
        for number in (signal.SIGTERM, signal.SIGHUP):
            if self._handlers[number] is not signal.SIG_IGN:  # nohup stays nohup
                signal.signal(number, lambda number, _: sys.exit(128 + number))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # what follows takes a moment and must not be cut short
        self.stack.stop()
        self._lock.release()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _start(self) -> None:
        port = self._api_port()
        url = f"http://{HOST}:{port}"
        with self._step("PostgreSQL, Valkey and the S3 gateway"):
            self.stack.start()
        with self._step("schema"):
            asyncio.run(migrate(self.stack.database_url()))
        webhooks = {
            "webhook_key": self.stack.secrets.webhook_key,
            "webhook_allow_http": True,
            "webhook_allow_private": f"{HOST},localhost",
        }
        with self._step(f"api on {url}"):
            self._service("api", "api", {"port": port, "training_pool": TRAINING_POOL} | webhooks)
            self._wait_for("the api", f"{url}/ready")
        with self._step("orchestrator"):
            health, admin = free_ports(2)
            self._service("orchestrator", "orchestrator", {"port": health, "admin_port": admin} | webhooks)
            self._wait_for("the orchestrator", f"http://{HOST}:{health}/ready")
        with self._step("one training slot and one CPU slot"):
            self.start_worker(TRAINER, TRAINING_POOL)
            self.start_worker(READER, INGEST_POOL)
        with self._step("account, API key and operator token"):
            self.access = self._access(url, f"http://{HOST}:{admin}")

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._console.print(f"  [green]✓[/] {what} [dim]{time.monotonic() - started:.1f} s[/]", highlight=False)

    def _api_port(self) -> int:
        """The port of the last run, so that addresses stay valid; else 8000, else any."""
        saved = self.root / "api_port"
        wanted = int(saved.read_text()) if saved.exists() else PREFERRED_PORT
        port = wanted if _is_free(wanted) else free_port()
        saved.write_text(str(port))
        return port

    def _service(self, name: str, service: Service, settings: dict[str, object]) -> None:
        own = {f"FUSION_{key.upper()}": str(value) for key, value in settings.items()}
        env = base_environment() | self.stack.environment(service=service) | {"FUSION_LOG_FORMAT": "json"} | own
        self.stack.processes.start(name, [sys.executable, "-m", f"fusion_{service}"], env=env)

    def start_worker(self, name: str, pool: str) -> None:
        settings = {
            "pool": pool,
            "name": f"{name}-{uuid4().hex[:8]}",  # starting all anew ends a drain, which holds for a name
            "work_dir": self.root / "workers" / name,
            "device": "cpu",
            "threads": min(2, os.cpu_count() or 1),
            "checkpoint_every_s": CHECKPOINT_EVERY_S,
            "drain_grace_s": 15,
        }
        self._service(name, "worker", settings)

    def _wait_for(self, what: str, url: str) -> None:
        def ready() -> bool:
            try:
                return httpx.get(url, timeout=2).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready, what, self.stack.processes)

    def _access(self, url: str, admin_url: str) -> Access:
        """The key of an earlier run if it still works, else a new one, written to `.fusion/env` for its owner alone."""
        env_file = self.root / "env"
        key = _saved(env_file, "FUSION_API_KEY")
        if key is not None and _works(f"{url}/api/keys?limit=1", key):
            is_new = False
        else:
            key, is_new = asyncio.run(_create_key(self.stack.database_url(), self.root / "account")), True
        write_private(env_file, f"export FUSION_API_URL={url}\nexport FUSION_API_KEY={key}\n".encode())
        self._let_operator_in(admin_url)
        return Access(url, key, is_new, admin_url)

    def _let_operator_in(self, admin_url: str) -> None:
        """What `fusion-admin` needs, in `.fusion/operator.env` for its owner alone.

        The operator token of the last run if it still works, and the settings of the stores.
        """
        env_file = self.root / "operator.env"
        token = _saved(env_file, "FUSION_OPERATOR_TOKEN")
        if token is None or not _works(f"{admin_url}/admin/audit?limit=1", token):
            token = asyncio.run(_create_operator_token(self.stack.database_url()))
        needed = {"FUSION_ADMIN_URL": admin_url, "FUSION_OPERATOR_TOKEN": token} | self.stack.environment()
        lines = (f"export {name}={shlex.quote(value)}\n" for name, value in needed.items())
        write_private(env_file, "".join(lines).encode())

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, a service that ends by itself raises ChildDiedError, whatever the main thread waits for."""
        before = signal.signal(signal.SIGCHLD, lambda *_: self.stack.processes.check())
        try:
            self.stack.processes.check()
            yield
        finally:
            signal.signal(signal.SIGCHLD, before)

    def run_until_interrupted(self) -> None:
        """Raises ChildDiedError when a service ends by itself."""
        with self.watching():
            while True:
                time.sleep(60)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _saved(env_file: Path, name: str) -> str | None:
    if not env_file.exists():
        return None
    lines = [line for line in env_file.read_text().splitlines() if f"{name}=" in line]
    return lines[0].split("=", 1)[1] if lines else None


def _works(url: str, secret: str) -> bool:
    answer = httpx.get(url, headers={"Authorization": f"Bearer {secret}"}, timeout=10)
    return answer.status_code == 200


async def _create_key(database_url: str, account_file: Path) -> str:
    """A key of the account that an earlier run made, so that its jobs and models stay in sight, else of a new one."""
    secret = new_secret()
    connection = await connect(database_url, application_name="fusion-local")
    try:
        await queries.insert_api_key(
            connection,
            account_id=await _account_id(connection, account_file),
            name="make up",
            prefix=visible_prefix(secret),
            secret_sha256=secret_sha256(secret),
            scopes=list(SCOPES),
            expires_at=None,
        )
    finally:
        await connection.close()
    return secret


async def _create_operator_token(database_url: str) -> str:
    secret = operator_tokens.new_secret()
    connection = await connect(database_url, application_name="fusion-local")
    try:
        await queries.insert_operator_token(
            connection,
            name=f"make up {secrets.token_hex(4)}",
            role="operator",
            prefix=visible_prefix(secret),
            secret_sha256=secret_sha256(secret),
        )
    finally:
        await connection.close()
    return secret


async def _account_id(connection: Connection, account_file: Path) -> UUID:
    if account_file.exists():
        known = UUID(account_file.read_text())
        if await queries.get_account(connection, account_id=known) is not None:
            return known
    account = await queries.insert_account(connection, name="local")
    write_private(account_file, str(account["id"]).encode())
    return UUID(str(account["id"]))


def stop_local(root: Path) -> list[str]:
    """End the stack over this folder, running or left behind by a crash; answers the names of what was ended.

    Raises AlreadyRunningError when a running one does not end.
    """
    if not root.exists():
        return []
    lock = RunLock(root.resolve())
    ended = ["make up or make demo"] if lock.take_from_holder() else []
    try:
        return ended + kill_leftovers(root)
    finally:
        lock.release()
