"""Dockerfiles and the compose file: linted, pinned, not root, and in step with the project they are built from."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVICES = ("api", "orchestrator", "worker")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def dockerfile(service: str) -> str:
    return (ROOT / f"services/{service}/Dockerfile").read_text()


@pytest.mark.parametrize("service", SERVICES)
def test_the_linter_finds_nothing(service: str) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    path = str(ROOT / f"services/{service}/Dockerfile")
    done = subprocess.run([str(linter), path], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("service", SERVICES)
def test_images_are_pinned_small_and_not_root(service: str) -> None:
    text = dockerfile(service)
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", text, re.MULTILINE)
    assert [name for _, name in stages] == ["build", ""], "what builds is not in the result"
    bases = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))
    assert {base.strip("${}") for base, _ in stages} == set(bases)
    assert all(re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", base) for base in bases.values())
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last
    assert "org.opencontainers.image.version" in last
    assert "COPY --from=build /opt/fusion /opt/fusion" in last
    entry = re.findall(r'^ENTRYPOINT \[.*"(fusion-\w+)"\]$', last, re.MULTILINE)
    assert entry == [f"fusion-{service}"]
    assert entry[0] in PROJECT["scripts"]


def test_a_worker_is_probed_alike_in_docker_and_in_the_chart() -> None:
    """By the mark of the daemon's own loop: process 1 is tini, which is always there."""
    (argv,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile("worker"), re.MULTILINE)
    (work_dir,) = re.findall(r"^VOLUME (\S+)$", dockerfile("worker"), re.MULTILINE)
    assert json.loads(argv) == ["python3", "-m", "fusion_worker.alive", work_dir]
    pod = (ROOT / "deploy/helm/fusion/templates/_worker.tpl").read_text()
    assert f"exec: {{command: [{', '.join(json.loads(argv))}]}}" in pod


@pytest.mark.parametrize("service", SERVICES)
def test_images_hold_the_extras_of_their_service_at_the_locked_versions(service: str) -> None:
    (extras,) = re.findall(r'--constraint requirements.lock "\.\[([\w,]+)\]"', dockerfile(service))
    assert service in extras.split(",")
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert ("engine" in extras) == (service == "worker")


def compose() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    return made


def test_compose_names_settings_that_exist_and_images_that_are_pinned() -> None:
    settings = set(re.findall(r"^\| `(FUSION_\w+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE))
    for name, service in compose()["services"].items():
        used = {key for key in service["environment"] if key.startswith("FUSION_")}
        assert used - settings == set(), name
        assert not service.get("image", "x:1").endswith(":latest")
        assert "build" in service or ":" in service["image"]


def test_compose_asks_for_every_secret_by_name() -> None:
    text = (ROOT / "deploy/compose.yaml").read_text()
    needed = set(re.findall(r"\$\{(\w+):\?", text))
    offered = set(re.findall(r"^(\w+)=", (ROOT / "deploy/.env.example").read_text(), re.MULTILINE))
    assert needed <= offered
    assert offered <= set(re.findall(r"\$\{(\w+)", text))


def test_compose_gives_the_webhook_key_to_those_that_sign() -> None:
    knows = {name for name, service in compose()["services"].items() if "FUSION_WEBHOOK_KEY" in service["environment"]}
    assert knows == {"api", "orchestrator", "admin"}


def test_workers_have_time_to_drain_in_compose() -> None:
    for name in ("reader", "trainer"):
        assert int(compose()["services"][name]["stop_grace_period"].removesuffix("s")) > 120
