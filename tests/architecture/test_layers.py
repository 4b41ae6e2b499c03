"""Who may import whom, and that everything but the engine runs where torch is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
TORCH_FREE = {
    "fusion_core": "libs",
    "fusion_data": "libs",
    "fusion_http": "libs",
    "fusion_client": "libs",
    "fusion_api": "services/api",
    "fusion_orchestrator": "services/orchestrator",
    "fusion_worker": "services/worker",
}
FORBIDDEN = ("torch", "transformers", "accelerate", "safetensors")

IMPORT_ALL = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_import_contracts_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0, capsys.readouterr().out


@pytest.mark.parametrize("package", TORCH_FREE)
def test_every_module_imports_without_torch(package: str) -> None:
    base = ROOT / TORCH_FREE[package]
    files = sorted((base / package).rglob("*.py"))
    modules = [".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__") for file in files]
    assert modules, f"{package} is empty"
    script = f"FORBIDDEN = {FORBIDDEN!r}\n{IMPORT_ALL}"
    done = subprocess.run(
        [sys.executable, "-c", script, *modules], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_block_works() -> None:
    script = f"FORBIDDEN = {FORBIDDEN!r}\n{IMPORT_ALL}"
    done = subprocess.run(
        [sys.executable, "-c", script, "safetensors"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "safetensors must not be imported here" in done.stderr
