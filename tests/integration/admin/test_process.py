"""The real process: metrics and admin on ports of their own, and both gone with it."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import httpx
from fusion_core.db.pool import connect_pool
from fusion_local.stack import HOST, free_ports

from tests import security_headers

from .conftest import new_token

DEADLINE_S = 30


async def _ready(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), httpx.AsyncClient() as http:
        while True:
            assert process.returncode is None, log.read_text()
            try:
                if (await http.get(f"{url}/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


async def test_metrics_and_admin_answer_on_different_ports_and_end_together(
    service_environment: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    async with await connect_pool(database_url, application_name="test") as pool:
        token = await new_token(pool, "ada", "viewer")
    health, admin = free_ports(2)
    ports = {"FUSION_PORT": str(health), "FUSION_ADMIN_PORT": str(admin), "FUSION_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "fusion_orchestrator"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = await asyncio.create_subprocess_exec(*command, env=service_environment | ports, stderr=file)
    try:
        await _ready(f"http://{HOST}:{health}", process, log)
        second = subprocess.run(
            command, env=service_environment | ports | {"FUSION_PORT": str(free_ports(1)[0])},
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert second.returncode != 0, "a taken admin port is no small matter"
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token.secret}"}) as http:
            assert (await http.get(f"http://{HOST}:{health}/metrics")).status_code == 200
            assert (await http.get(f"http://{HOST}:{admin}/admin/audit")).json()[0]["action"] == "create_token"
            for url in (f"http://{HOST}:{health}/admin/audit", f"http://{HOST}:{admin}/metrics"):
                assert (await http.get(url)).status_code == 404, url
            everywhere = [
                f"http://{HOST}:{health}/{path}" for path in ("health", "ready", "metrics", "demand/x", "none")
            ]
            for url in [*everywhere, f"http://{HOST}:{admin}/admin/overview", f"http://{HOST}:{admin}/none"]:
                security_headers.check(await http.get(url, headers={"Origin": "https://elsewhere.example"}))
            big = await http.post(f"http://{HOST}:{admin}/admin/audit", content=b" " * 2**20)
            assert big.status_code in (405, 413)
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            code = await process.wait()
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert token.secret not in log.read_text()
    assert '"path": "/ready"' not in log.read_text(), "probes would bury everything else"
