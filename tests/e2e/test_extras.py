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


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a clean environment. The orchestrator's comes last, since all that the api needs is a part of it."""
    folder = tmp_path_factory.mktemp("extras") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=100)
    return folder / "bin" / "python"


def pip(python: Path, *words: str) -> str:
    """As the Dockerfiles use it; answers what it printed."""
    command = [sys.executable, "-m", "pip", "--python", str(python), *words]
    return subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.e2e
@pytest.mark.timeout(400)
@pytest.mark.parametrize("extra", SERVICES)
async def test_a_service_starts_in_a_clean_environment_without_torch(
    extra: str, python: Path, stack: Stack, tmp_path: Path
) -> None:
    module, path = SERVICES[extra]
    await migrate(stack.database_url())
    async with Storage(stack.settings()) as storage:
        await storage.ensure_bucket()
    dockerfile = (ROOT / f"services/{extra}/Dockerfile").read_text()
    (wanted,) = re.findall(r'--constraint requirements.lock "\.(\[[\w,]+\])"', dockerfile)
    lock = str(ROOT / "requirements.lock")
    pip(python, "install", "--quiet", "--no-compile", "--constraint", lock, f"{ROOT}{wanted}")
    listed = pip(python, "list")
    assert "torch" not in listed
    assert "transformers" not in listed
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
