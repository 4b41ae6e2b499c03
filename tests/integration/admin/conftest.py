"""The admin endpoints over real stores, called through HTTP with tokens of both roles."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
from fusion_core.db.audit import By
from fusion_core.db.pool import Pool
from fusion_core.problems import PROBLEMS
from fusion_core.settings import CommonSettings
from fusion_http.request_context import RequestContext
from fusion_orchestrator import operators
from fusion_orchestrator.admin.app import create_admin_app
from fusion_orchestrator.doorbell import Doorbell, connect_redis
from fusion_orchestrator.metrics import Metrics
from fusion_orchestrator.service import Service
from fusion_orchestrator.settings import OrchestratorSettings
from fusion_orchestrator.webhooks.loops import Webhooks
from litestar import Litestar

from tests.integration.db.conftest import World, world  # noqa: F401 - the fixture

Ask = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
async def service(world: World, common_settings: CommonSettings, redis_url: str) -> AsyncIterator[Service]:  # noqa: F811
    """A replica whose loops do not run: the operator's hand alone moves things."""
    settings = OrchestratorSettings(**msgspec.structs.asdict(common_settings), redis_url=redis_url)
    metrics, redis = Metrics(), connect_redis(redis_url)
    webhooks = Webhooks(world.pool, redis, settings, metrics)
    yield Service(settings, world.pool, Doorbell(world.pool, redis, settings, metrics), webhooks, metrics)
    await redis.aclose()


@pytest.fixture
def app(service: Service) -> Litestar:
    return create_admin_app(service)


@pytest.fixture
async def http(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(RequestContext(app), raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=30) as client:
        yield client


async def new_token(pool: Pool, name: str, role: str) -> operators.NewToken:
    async with pool.acquire() as conn:
        return await operators.create_token(conn, By("cli:test", "a test"), name, role)


@pytest.fixture
async def ask(http: httpx.AsyncClient, world: World) -> Ask:  # noqa: F811
    """ask(method, path, **options) as an operator called ada."""
    secret = (await new_token(world.pool, "ada", "operator")).secret

    async def send(method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"} | options.pop("headers", {})
        return await http.request(method, path, headers=headers, **options)

    return send


def check_problem(response: httpx.Response, code: str) -> Any:
    """The body of an error, checked for what every error has."""
    body = response.json()
    assert (response.status_code, body.get("code")) == (PROBLEMS[code].status, code), body
    assert response.headers["content-type"].startswith("application/problem+json")
    assert body["request_id"] == response.headers["x-request-id"]
    return body
