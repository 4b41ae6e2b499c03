"""One trace from a customer's request to the webhook that tells of the model, and none where no endpoint is set."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import httpx
import msgspec
import pytest
from fusion_api.app import create_app
from fusion_api.services import open_services
from fusion_api.settings import ApiSettings
from fusion_core import tracing
from fusion_core.db import webhooks
from fusion_core.settings import CommonSettings
from fusion_http.request_context import RequestContext
from fusion_orchestrator.service import running
from fusion_orchestrator.settings import OrchestratorSettings

from tests.inputs import add_key
from tests.integration.orchestrator.webhook_receiver import Receiver

from .collector import Collector, Seen
from .conftest import POOL, Site, Start, until

CLIENTS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = CLIENTS[3:35]


@pytest.fixture
def collector(common_settings: CommonSettings) -> Iterator[Collector]:
    with Collector() as collector:
        tracing.configure("test", msgspec.structs.replace(common_settings, otlp_endpoint=collector.url))
        yield collector
        tracing.close()


async def submit(site: Site, common: CommonSettings, headers: dict[str, str]) -> httpx.Response:
    """A job of a new customer through the API, with a webhook for its end."""
    account_id = await site._account()
    secret = await add_key(site.pool, account_id)
    body = {
        "type": "train",
        "idempotency_key": uuid4().hex,
        "base_model_id": str(await site.base_model()),
        "dataset_id": str(await site._dataset(account_id)),
        "hyperparams": {"turns": 1, "cycles": 1, "steps_per_cycle": 4, "output_name": "normal-model"},
    }
    app = create_app(ApiSettings(**msgspec.structs.asdict(common), training_pool=POOL))
    transport = httpx.ASGITransport(RequestContext(app))  # type: ignore[arg-type]
    async with open_services(app), httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        return await http.post("/api/jobs", json=body, headers=headers | {"Authorization": f"Bearer {secret}"})


async def test_a_job_is_one_trace_from_request_to_webhook(
    site: Site, start_daemon: Start, common_settings: CommonSettings, redis_url: str, collector: Collector
) -> None:
    answer = await submit(site, common_settings, {"traceparent": CLIENTS})
    assert answer.status_code == 201, answer.text
    assert answer.headers["traceparent"].startswith(f"00-{TRACE_ID}-"), "the client's trace goes on"
    job_id = answer.json()["id"]
    settings = OrchestratorSettings(
        **msgspec.structs.asdict(common_settings),
        redis_url=redis_url,
        webhook_key="k" * 32,
        webhook_allow_http=True,
        webhook_allow_private="127.0.0.1",
        sweep_s=0.2,
    )
    async with Receiver() as receiver:
        account_id = await site.pool.fetchval("select account_id from jobs where id = $1", job_id)
        async with site.pool.acquire() as connection:
            await webhooks.create_endpoint(
                connection, account_id, url=receiver.url, event_types=["job.completed"], description=""
            )
        async with running(settings):
            await start_daemon()
            await site.reaches(job_id, "completed")
            wanted = {"POST /api/jobs", "queued", "attempt", "stage inputs", "preparing", "growing", "training", "turn"}
            wanted |= {"upload checkpoint", "exporting", "upload export", "complete", "send webhook"}

            async def all_seen() -> bool:
                return wanted <= {span.name for span in collector.spans}

            await until(all_seen, f"spans {wanted}")
    assert {span.trace_id for span in collector.spans if span.name in wanted} == {TRACE_ID}
    check_tree({span.name: span for span in collector.spans}, job_id)


def check_tree(spans: dict[str, Seen], job_id: str) -> None:
    """Who began whom."""
    request, attempt = spans["POST /api/jobs"], spans["attempt"]
    assert request.parent_id == CLIENTS[36:52]
    assert request.attributes["http.response.status_code"] == 201
    for name in ("queued", "attempt", "send webhook"):
        assert spans[name].parent_id == request.span_id, name
    for name in ("stage inputs", "preparing", "growing", "training", "exporting", "upload checkpoint", "complete"):
        assert spans[name].parent_id == attempt.span_id, name
    assert spans["turn"].parent_id == spans["training"].span_id
    assert spans["upload export"].parent_id == spans["complete"].span_id
    assert attempt.attributes["fusion.job_id"] == job_id
    assert (attempt.attributes["fusion.attempt"], attempt.attributes["fusion.pool"]) == (1, POOL)
    assert request.service == "fusion-test"


@pytest.mark.parametrize("given", ["", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "nonsense", "00-é"])
async def test_a_traceparent_that_cannot_be_read_begins_a_new_trace(
    site: Site, common_settings: CommonSettings, collector: Collector, given: str
) -> None:
    answer = await submit(site, common_settings, {"traceparent": given.encode()})  # type: ignore[dict-item]
    assert answer.status_code == 201
    assert TRACE_ID not in answer.headers["traceparent"]
    assert len(answer.headers["traceparent"]) == 55


async def test_without_an_endpoint_nothing_is_traced(site: Site, common_settings: CommonSettings) -> None:
    answer = await submit(site, common_settings, {"traceparent": CLIENTS})
    assert answer.status_code == 201
    assert "traceparent" not in answer.headers
    assert await site.pool.fetchval("select traceparent from jobs where id = $1", answer.json()["id"]) is None


async def test_a_collector_that_hangs_holds_up_nothing(
    site: Site, start_daemon: Start, common_settings: CommonSettings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and never answers
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        tracing.configure("test", msgspec.structs.replace(common_settings, otlp_endpoint=url))
        try:
            answer = await submit(site, common_settings, {})
            await start_daemon()
            await site.reaches(answer.json()["id"], "completed")
            for _ in range(3 * tracing.QUEUE_LENGTH):
                tracing.start("more than the queue takes").end()
        finally:
            async with asyncio.timeout(tracing.CLOSE_TIMEOUT_S + 60):
                await asyncio.to_thread(tracing.close)


def test_services_need_no_packages_for_it() -> None:
    """With OpenTelemetry absent every service imports, and an endpoint is refused with what to install."""
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ImportError(f"no module {name}")
sys.meta_path.insert(0, Absent())
import fusion_api.__main__, fusion_orchestrator.__main__, fusion_worker.__main__
from fusion_core import tracing
from fusion_core.settings import CommonSettings, SettingsError
here = dict(database_url="x", s3_endpoint="x", s3_access_key="x", s3_secret_key="x")
tracing.configure("test", CommonSettings(**here))
with tracing.span("nothing") as span:
    assert span.traceparent is None
try:
    tracing.configure("test", CommonSettings(**here, otlp_endpoint="http://127.0.0.1:1"))
except SettingsError as error:
    assert "fusion[tracing]" in str(error)
else:
    raise AssertionError("taken without its packages")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
