"""What the Dockerfiles of the api and the orchestrator install is enough to start them, and has no torch."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fusion_local.stack import HOST, free_port

ROOT = Path(__file__).parents[2]
SERVICES = {"api": ("fusion_api", "/ready"), "orchestrator": ("fusion_orchestrator", "/ready")}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a clean environment. The orchestrator's comes last, since all that the api needs is a part of it."""
    folder = tmp_path_factory.mktemp("extras") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=100)
    yield folder / "bin" / "python"
    shutil.rmtree(folder)  # 170 MB


def pip(python: Path, *words: str) -> str:
    """As the Dockerfiles use it; answers what it printed."""
    command = [sys.executable, "-m", "pip", "--python", str(python), *words]
    return subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.e2e
@pytest.mark.timeout(400)
@pytest.mark.parametrize("extra", SERVICES)
@pytest.mark.usefixtures("storage")  # makes the bucket
async def test_a_service_starts_in_a_clean_environment_without_torch(
    extra: str, python: Path, service_environment: dict[str, str], tmp_path: Path
) -> None:
    module, path = SERVICES[extra]
    dockerfile = (ROOT / f"services/{extra}/Dockerfile").read_text()
    (wanted,) = re.findall(r'--constraint requirements.lock "\.(\[[\w,]+\])"', dockerfile)
    lock = str(ROOT / "requirements.lock")
    pip(python, "install", "--quiet", "--no-compile", "--constraint", lock, f"{ROOT}{wanted}")
    listed = pip(python, "list")
    assert "torch" not in listed
    assert "transformers" not in listed
    port = free_port()
    environment = service_environment | {"FUSION_PORT": str(port), "PATH": "/usr/bin:/bin"}
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
