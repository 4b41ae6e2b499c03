"""PgBouncer in transaction mode before the embedded Postgres, as production runs it."""

import os
import shutil
from pathlib import Path

from fusion_local.processes import base_environment, wait_until
from fusion_local.stack import HOST, Stack, free_port, write_private

SERVER_CONNECTIONS = 20  # to Postgres, of one database
CLIENTS = 5000
_USER = "embedded_postgres"  # it does not run as root either: the system user that the stack made for Postgres


def find_pgbouncer() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


def start_pgbouncer(stack: Stack, program: str) -> int:
    """Answers its port. Raises ChildDiedError or TimeoutError."""
    port, folder = free_port(), stack.root / "pgbouncer"
    folder.mkdir()
    users, config = folder / "users.txt", folder / "pgbouncer.ini"
    logins = {
        "worker_login": stack.secrets.postgres_worker,
        "orchestrator_login": stack.secrets.postgres_orchestrator,
    }
    write_private(users, "".join(f'"{login}" "{password}"\n' for login, password in logins.items()).encode())
    lines = {
        "listen_addr": HOST,
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": users,
        "pool_mode": "transaction",
        "default_pool_size": SERVER_CONNECTIONS,
        "max_client_conn": CLIENTS,
        "server_idle_timeout": 5,
        "logfile": "",
    }
    text = f"[databases]\n* = host={HOST} port={stack.postgres_port}\n[pgbouncer]\n"
    write_private(config, (text + "".join(f"{name} = {value}\n" for name, value in lines.items())).encode())
    user = _USER if os.geteuid() == 0 else None
    if user is not None:
        for path in (folder, users, config):
            shutil.chown(path, user)
    stack.processes.start("pgbouncer", [program, str(config)], env=base_environment(), user=user)
    wait_until(lambda: _listens(stack.processes.log_path("pgbouncer")), "PgBouncer", stack.processes)
    return port


def _listens(log: Path) -> bool:
    return "process up" in log.read_text(errors="replace")
