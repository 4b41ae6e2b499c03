"""The real application over real stores, called through HTTP."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from fusion_api.app import create_app
from fusion_api.metrics import Metrics
from fusion_api.services import open_services
from fusion_api.settings import ApiSettings
from fusion_core.api_keys import SCOPES
from fusion_core.db import attempts, checkpoints
from fusion_core.db.attempts import Attempt, Claimer, NewModel
from fusion_core.db.checkpoints import NewCheckpoint
from fusion_core.db.pool import Pool, connect_pool, queries
from fusion_core.problems import PROBLEMS
from fusion_core.settings import CommonSettings
from fusion_core.storage import Storage
from fusion_core.trainer_protocol import FileEntry, Manifest
from fusion_http.request_context import RequestContext
from fusion_local.stack import Stack
from litestar import Litestar

from tests.inputs import CONFIG, add_base_model, add_dataset, add_key

from .documented import check_documented


class Customer:
    """An account, and requests with one of its keys."""

    def __init__(self, http: httpx.AsyncClient, pool: Pool, account_id: UUID) -> None:
        self.http = http
        self.pool = pool
        self.account_id = account_id
        self.secret = ""

    async def use_key(self, *scopes: str) -> None:
        self.secret = await add_key(self.pool, self.account_id, scopes)

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.secret}"} | options.pop("headers", {})
        return await self.http.request(method, path, headers=headers, **options)

    async def dataset(self, *, ready: bool = True) -> str:
        if ready:
            return str(await add_dataset(self.pool, self.account_id))
        return str((await queries.insert_dataset(self.pool, account_id=self.account_id, name="data"))["id"])

    async def job_body(self, base: str, **changes: Any) -> dict[str, Any]:
        body = {
            "type": "train",
            "idempotency_key": uuid4().hex,
            "base_model_id": base,
            "dataset_id": await self.dataset(),
            "hyperparams": {"turns": 2, "output_name": "my-grown-model"},
        }
        return body | changes

    async def submit(self, base: str, **changes: Any) -> str:
        """The id of a new job."""
        response = await self.send("POST", "/api/jobs", json=await self.job_body(base, **changes))
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    async def model(self, base: str) -> str:
        """The id of a model of the account's own, grown from a base."""
        await self.complete(await self.claim(await self.submit(base)))
        return str((await self.send("GET", "/api/models")).json()[0]["id"])

    async def claim(self, job_id: str, epoch: int = 0) -> Attempt:
        """What a worker does first."""
        attempt_id = uuid4()
        async with self.pool.acquire() as conn:
            claimer = Claimer(worker_id=uuid4(), pool="h100x1")
            job = await attempts.claim(conn, claimer, UUID(job_id), epoch, attempt_id, 20)
        assert job is not None
        return Attempt(job.id, job.lease_epoch, attempt_id)

    async def checkpoint(self, attempt: Attempt, step: int) -> str:
        """A committed checkpoint of 10 bytes; its id."""
        prefix = f"jobs/{attempt.job_id}/{attempt.epoch}-{attempt.attempt_id}/checkpoints/{step:09d}"
        manifest = Manifest((FileEntry("state", 10, "0" * 64),))
        new = NewCheckpoint(step=step, turn_end=False, s3_prefix=prefix, manifest=manifest, format_version=1)
        async with self.pool.acquire() as conn:
            await checkpoints.commit_checkpoint(conn, attempt, new)
        listed = (await self.send("GET", f"/api/jobs/{attempt.job_id}/checkpoints?limit=1")).json()
        return str(listed[0]["id"])

    async def obey(self, attempt: Attempt) -> None:
        """What a worker does once its trainer has stopped as the customer asked."""
        async with self.pool.acquire() as conn:
            await attempts.obey(conn, attempt)

    async def complete(self, attempt: Attempt) -> None:
        """What a worker does last."""
        manifest = Manifest((FileEntry("config.json", 5, "0" * 64),))
        prefix = f"jobs/{attempt.job_id}"
        model = NewModel(name="my-grown-model", params=9_000_000, config=CONFIG, s3_prefix=prefix, manifest=manifest)
        async with self.pool.acquire() as conn:
            result = {"perplexity_before": 17.0, "perplexity_after": 11.0}
            await attempts.complete_training(conn, attempt, model, result)


def check_problem(response: httpx.Response, code: str) -> Any:
    """The body of an error, checked for everything that every error has."""
    body = response.json()
    assert (response.status_code, body.get("code")) == (PROBLEMS[code].status, code), body
    assert response.headers["content-type"].startswith("application/problem+json")
    assert list(body) == ["type", "title", "status", "detail", "code", "request_id", "errors"]
    assert (body["title"], body["status"]) == (PROBLEMS[code].title, response.status_code)
    assert body["request_id"] == response.headers["x-request-id"]
    assert PROBLEMS[code].advice in body["detail"]
    return body


@pytest.fixture
def problem() -> Callable[[httpx.Response, str], Any]:
    return check_problem


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database_url, application_name="test")
    yield pool
    await pool.close()


@pytest.fixture(scope="session")
def application(stack: Stack) -> Litestar:
    """Built once, a tenth of a second for each test otherwise: what is of a test is in its state."""
    return create_app(ApiSettings(**msgspec.structs.asdict(stack.settings())))


@pytest.fixture
async def http(
    stack: Stack, application: Litestar, database_name: str, common_settings: CommonSettings, storage: Storage
) -> AsyncIterator[httpx.AsyncClient]:
    """The API, with its own rights in the database."""
    own = {"database_url": stack.database_url(database_name, "api"), "webhook_key": "test-key-" * 4}
    app = application
    app.state.settings = ApiSettings(**msgspec.structs.asdict(common_settings) | own)
    app.state.metrics = Metrics()
    transport = httpx.ASGITransport(RequestContext(app, watch=app.state.metrics.answered), raise_app_exceptions=False)  # type: ignore[arg-type]
    hooks = {"response": [check_documented]}
    client = httpx.AsyncClient(transport=transport, base_url="http://api", timeout=30, event_hooks=hooks)
    async with open_services(app), client:
        yield client


@pytest.fixture
def new_customer(http: httpx.AsyncClient, pool: Pool) -> Callable[..., Awaitable[Customer]]:
    async def make(*scopes: str) -> Customer:
        account = await queries.insert_account(pool, name="account")
        customer = Customer(http, pool, account["id"])
        await customer.use_key(*(scopes or SCOPES))
        return customer

    return make


@pytest.fixture
async def customer(new_customer: Callable[..., Awaitable[Customer]]) -> Customer:
    return await new_customer()


@pytest.fixture
async def base_model_id(pool: Pool) -> str:
    return str(await add_base_model(pool))
