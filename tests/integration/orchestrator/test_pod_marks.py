"""Pods are marked while their worker holds a lease, against an API server of this test."""

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import certifi
import pytest
from fusion_core.db.pool import queries
from fusion_orchestrator.service import running
from fusion_orchestrator.settings import OrchestratorSettings
from msgspec.structs import replace

from .conftest import World

FOLDER = "/api/v1/namespaces/ml/pods"
EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
COST = "controller.kubernetes.io/pod-deletion-cost"
Eventually = Callable[..., Awaitable[None]]


class Kubernetes(BaseHTTPRequestHandler):
    """Lists pods one a page, and takes merge patches of their annotations."""

    pods: dict[str, dict[str, str]]
    gone: set[str]
    patches: list[str]
    lists: list[str]
    refuses = False

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        assert urlsplit(self.path).path == FOLDER
        self.lists.append(self.path)
        if self.refuses:
            self.answer(403, {})
            return
        assert self.headers["Authorization"] == "Bearer a token"
        assert asked["labelSelector"] == ["fusion/marks=lease"]
        names = sorted(self.pods)
        at = names.index(asked["continue"][0]) if "continue" in asked else 0
        more = {"continue": names[at + 1]} if at + 1 < len(names) else {}
        pod = {"metadata": {"name": names[at], "annotations": self.pods[names[at]] or None}}
        self.answer(200, {"items": [pod], "metadata": more})

    def do_PATCH(self) -> None:
        name = self.path.removeprefix(f"{FOLDER}/")
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.patches.append(name)
        if name in self.gone:
            self.answer(404, {})
            return
        found = self.pods[name] | body["metadata"]["annotations"]
        self.pods[name] = {mark: value for mark, value in found.items() if value is not None}
        self.answer(200, {})

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def kubernetes() -> Iterator[type[Kubernetes]]:
    class Cluster(Kubernetes):
        pods = {name: {"keep": "this"} for name in ("a-gone", "busy", "idle")}  # noqa: RUF012 a class a test
        gone = {"a-gone"}  # noqa: RUF012
        patches: list[str] = []  # noqa: RUF012
        lists: list[str] = []  # noqa: RUF012

    Cluster.pods["a-gone"][EVICT] = "false"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    Cluster.server_port = server.server_port  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield Cluster
    server.shutdown()
    server.server_close()


@pytest.fixture
async def busy(
    world: World, kubernetes: Any, settings: OrchestratorSettings, tmp_path: Path
) -> AsyncIterator[OrchestratorSettings]:
    """A service that marks pods; the worker `busy` is registered."""
    (tmp_path / "token").write_text("a token\n")
    (tmp_path / "namespace").write_text("ml")
    shutil.copy(certifi.where(), tmp_path / "ca.crt")
    await queries.register_worker(
        world.pool,
        id=world.claimer.worker_id,
        name="busy",
        pool=world.job_pool,
        spec_version=world.claimer.spec_version,
        capabilities=list(world.claimer.capabilities),
        version="0",
        gpus=0,
    )
    own = replace(
        settings,
        mark_pods="fusion/marks=lease",
        mark_every_s=0.1,
        kubernetes_api=f"http://127.0.0.1:{kubernetes.server_port}",
        kubernetes_credentials=str(tmp_path),
    )
    async with running(own):
        yield own


@pytest.mark.usefixtures("busy")
async def test_a_pod_is_marked_while_its_worker_holds_a_job(
    world: World, kubernetes: Any, eventually: Eventually
) -> None:
    attempt = await world.claim(await world.queue_job())

    async def marked() -> bool:
        return kubernetes.pods["busy"].get(EVICT) == "false"

    await eventually(marked)
    assert kubernetes.pods["busy"]["karpenter.sh/do-not-disrupt"] == "true"
    assert int(kubernetes.pods["busy"][COST]) > 0
    assert kubernetes.pods["idle"] == {"keep": "this"}
    assert "idle" not in kubernetes.patches, "what is as it should be is left alone"
    await world.lose(attempt)

    async def unmarked() -> bool:
        return kubernetes.pods["busy"] == {"keep": "this"}

    await eventually(unmarked)


@pytest.mark.usefixtures("busy")
async def test_refused_by_kubernetes_it_tries_again(world: World, kubernetes: Any, eventually: Eventually) -> None:
    kubernetes.refuses = True
    await world.claim(await world.queue_job())

    async def asked() -> bool:
        return len(kubernetes.lists) > 2

    await eventually(asked)
    assert kubernetes.patches == []
    kubernetes.refuses = False

    async def marked() -> bool:
        return kubernetes.pods["busy"].get(EVICT) == "false"

    await eventually(marked)
