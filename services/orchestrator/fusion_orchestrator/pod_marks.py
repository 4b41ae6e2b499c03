"""Marks on the pods of Kubernetes: no node is emptied under a worker that holds a job, and idle pods are scaled in
first.

Once a pass, each pod that the label selector finds is patched (RFC 7396) where it is not as its worker's lease has it.
A worker is known by its name, which in a pod is the pod's. Whatever fails, the marks stay as they were: a pod that is
evicted without a mark saves a checkpoint on SIGTERM, as ever.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Set
from pathlib import Path
from typing import Any

import httpx
from fusion_core.db.pool import Pool, queries

from fusion_orchestrator.settings import OrchestratorSettings

_REQUEST_S = 10.0
_PAGE = 500
_HELD = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
    "controller.kubernetes.io/pod-deletion-cost": "1000",  # those without it, whose cost is 0, go first
}


class PodMarks:
    """The pods of one namespace: the one of this process' service account."""

    def __init__(self, pool: Pool, settings: OrchestratorSettings) -> None:
        self._pool = pool
        self._selector = settings.mark_pods
        self._api = settings.kubernetes_api
        self._credentials = Path(settings.kubernetes_credentials)

    async def renew(self) -> None:
        """One pass. Raises DATABASE_AWAY, OSError where Kubernetes refuses, does not answer, or gave no credentials."""
        busy = {row["name"] async for row in queries.busy_workers(self._pool)}
        try:
            http, folder = await self._open()
            async with http:
                await self._mark(http, folder, busy)
        except httpx.HTTPError as error:
            raise OSError(f"Kubernetes: {error!r}") from error

    async def _mark(self, http: httpx.AsyncClient, folder: str, busy: Set[str]) -> None:
        async for name, annotations in self._pods(http, folder):
            wanted: dict[str, str | None] = dict(_HELD) if name in busy else dict.fromkeys(_HELD)
            if {mark: annotations.get(mark) for mark in _HELD} == wanted:
                continue
            answer = await http.patch(
                f"{folder}/{name}",
                json={"metadata": {"annotations": wanted}},
                headers={"Content-Type": "application/merge-patch+json"},
            )
            if answer.status_code != httpx.codes.NOT_FOUND:  # it has gone meanwhile
                answer.raise_for_status()

    async def _pods(self, http: httpx.AsyncClient, folder: str) -> AsyncIterator[tuple[str, dict[str, str]]]:
        page = {"labelSelector": self._selector, "limit": str(_PAGE), "continue": ""}
        more = True
        while more:
            answer = (await http.get(folder, params=page)).raise_for_status()
            listed: dict[str, Any] = answer.json()
            for pod in listed["items"]:
                yield pod["metadata"]["name"], pod["metadata"].get("annotations") or {}
            page["continue"] = listed["metadata"].get("continue", "")
            more = bool(page["continue"])

    async def _open(self) -> tuple[httpx.AsyncClient, str]:
        """A client, and the path of the pods. The token is read anew: Kubernetes replaces it within the hour."""
        token, namespace, trusted = await asyncio.to_thread(self._read)
        http = httpx.AsyncClient(
            base_url=self._api,
            headers={"Authorization": f"Bearer {token}"},
            verify=trusted,
            timeout=_REQUEST_S,
            trust_env=False,
        )
        return http, f"/api/v1/namespaces/{namespace}/pods"

    def _read(self) -> tuple[str, str, ssl.SSLContext]:
        token, namespace = ((self._credentials / name).read_text().strip() for name in ("token", "namespace"))
        return token, namespace, ssl.create_default_context(cafile=self._credentials / "ca.crt")
