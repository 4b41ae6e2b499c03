"""What Prometheus is told of requests: by route and not by path, with the problem's code, on a port of its own."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from fusion_api.metrics import Metrics
from fusion_local.stack import Stack, free_port

from tests.alert_rules import threshold

from .api_process import Server


def metrics_of(http: httpx.AsyncClient) -> Metrics:
    metrics: Metrics = http._transport.app._app.state.metrics  # type: ignore[attr-defined]
    return metrics


def samples(http: httpx.AsyncClient, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in metrics_of(http).registry.collect()
        for sample in family.samples
        if sample.name == name
    }


async def test_requests_are_counted_by_route_and_status(http: httpx.AsyncClient, customer: Any) -> None:
    for job in ("019a0000-0000-7000-8000-000000000001", "019a0000-0000-7000-8000-000000000002"):
        await customer.send("GET", f"/api/jobs/{job}")
    await http.get("/api/no/such/path")
    await http.request("BREW", "/api/jobs")
    counted = samples(http, "fusion_api_requests_total")
    assert counted["GET", "/api/jobs/{job_id}", "404"] == 2
    assert counted["GET", "unmatched", "404"] == 1
    assert {method for method, _, _ in counted} == {"GET", "other"}
    assert samples(http, "fusion_api_request_duration_seconds_count")["GET", "/api/jobs/{job_id}"] == 2


async def test_problems_are_counted_by_code(http: httpx.AsyncClient, customer: Any) -> None:
    await customer.send("GET", "/api/jobs")
    await http.get("/api/jobs")
    await customer.send("POST", "/api/jobs", json={"type": "train"})
    assert samples(http, "fusion_api_problems_total") == {("unauthorized",): 1, ("validation_failed",): 1}


async def test_open_streams_and_connections_show(http: httpx.AsyncClient) -> None:
    app: Any = http._transport.app._app  # type: ignore[attr-defined]
    with app.state.services.hub.bell(uuid4(), uuid4()):
        assert samples(http, "fusion_api_event_streams") == {(): 1}
    assert samples(http, "fusion_api_event_streams") == {(): 0}
    assert samples(http, "fusion_api_database_connections")["busy",] == 0
    async with app.state.services.pool.acquire():
        assert samples(http, "fusion_api_database_connections")["busy",] == 1


async def test_the_figures_answer_on_a_port_of_their_own(
    service_environment: dict[str, str], storage: object, tmp_path: Path
) -> None:
    port = free_port()
    server = Server(service_environment | {"FUSION_METRICS_PORT": str(port)}, tmp_path / "log")
    try:
        await asyncio.to_thread(server.wait_ready)
        assert httpx.get(f"{server.url}/metrics", timeout=10).status_code == 404
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        assert 'fusion_api_requests_total{method="GET",route="/ready",status="200"}' in text
    finally:
        server.process.kill()
        server.process.wait(10)


async def test_a_drill_postgres_goes_away_and_the_api_says_so(
    http: httpx.AsyncClient, customer: Any, stack: Stack
) -> None:
    """The share of 5xx crosses the threshold of its alert, and falls again once Postgres is back."""
    most = threshold("FusionApiErrors", 'status=~"5..".*')
    await customer.send("GET", "/api/jobs")
    await asyncio.to_thread(stack.processes.stop, "postgres")
    try:
        for _ in range(3):
            assert (await customer.send("GET", "/api/jobs")).status_code == 503
    finally:
        await asyncio.to_thread(stack.start_postgres)
    counted = samples(http, "fusion_api_requests_total")
    errors = sum(value for (_, _, status), value in counted.items() if status.startswith("5"))
    assert errors / sum(counted.values()) > most
    assert samples(http, "fusion_api_problems_total")["not_ready",] == errors
