"""What the Dockerfiles of the api and the orchestrator install is enough to start them, and has no torch."""

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fusion_core.db.migrate import migrate
from fusion_core.storage import Storage
from fusion_local.stack import HOST, Stack, free_port

ROOT = Path(__file__).parents[2]
SERVICES = {"api": ("fusion_api", "/ready"), "orchestrator": ("fusion_orchestrator", "/ready")}


@pytest.mark.e2e
@pytest.mark.timeout(400)
@pytest.mark.parametrize("extra", SERVICES)
async def test_a_service_starts_in_a_clean_environment_without_torch(extra: str, stack: Stack, tmp_path: Path) -> None:
    module, path = SERVICES[extra]
    await migrate(stack.database_url())
    async with Storage(stack.settings()) as storage:
        await storage.ensure_bucket()
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True, timeout=100)
    dockerfile = (ROOT / f"services/{extra}/Dockerfile").read_text()
    (wanted,) = re.findall(r'--constraint requirements.lock "\.(\[[\w,]+\])"', dockerfile)
    install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "requirements.lock")]
    subprocess.run([*install, f"{ROOT}{wanted}"], check=True, timeout=300)
    listed = subprocess.run([str(python), "-m", "pip", "list"], check=True, timeout=60, capture_output=True, text=True)
    assert "torch" not in listed.stdout
    assert "transformers" not in listed.stdout
    port = free_port()
    environment = stack.environment() | {"FUSION_PORT": str(port), "PATH": "/usr/bin:/bin"}
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen([str(python), "-m", module], env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while not _answers(f"http://{HOST}:{port}{path}"):
            assert service.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.2)
    finally:
        service.terminate()
        service.wait(30)
    assert service.returncode in (0, -15)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
