"""Every test that needs a store gets a real one: one embedded stack a test process, one database a test."""

import functools
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fusion_core.db.migrate import migrate
from fusion_core.settings import CommonSettings
from fusion_core.storage import Storage
from fusion_local.stack import Stack, create_database, drop_database

from tests.clock import create_clocked_database, create_clocked_template

_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_description() -> Iterator[None]:
    """botocore parses its description of S3 for each client's session, half of a small test's time: once is enough."""
    from botocore.loaders import JSONFileLoader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", staticmethod(functools.cache(JSONFileLoader().load_file)))
        yield


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, s3_description: None) -> Iterator[Stack]:
    """Postgres, Valkey and the S3 gateway, started once."""
    stack = Stack(tmp_path_factory.mktemp("stack"), durable=False)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
async def _template(stack: Stack) -> str:
    await migrate(stack.database_url("fusion"))
    return "fusion"


@pytest.fixture
async def database_name(stack: Stack, _template: str) -> AsyncIterator[str]:
    """A fresh, migrated database, gone after the test: some hundreds of them would fill a small disk."""
    name = f"test_{next(_numbers)}"
    await create_database(stack.database_url("postgres"), name, _template)
    yield name
    await drop_database(stack.database_url("postgres"), name)


@pytest.fixture
def database_url(stack: Stack, database_name: str) -> str:
    return stack.database_url(database_name)


@pytest.fixture(scope="session")
async def _clocked_template(stack: Stack) -> str:
    await create_clocked_template(stack.database_url("postgres"), stack.database_url("clocked"), "clocked")
    return "clocked"


@pytest.fixture
async def clocked_database_url(stack: Stack, _clocked_template: str) -> AsyncIterator[str]:
    """A fresh, migrated database whose time only the test moves, with `tests.clock.Clock`."""
    name = f"test_{next(_numbers)}"
    await create_clocked_database(stack.database_url("postgres"), name, _clocked_template)
    yield stack.database_url(name)
    await drop_database(stack.database_url("postgres"), name)


@pytest.fixture
def common_settings(stack: Stack, database_name: str) -> CommonSettings:
    """Settings of a fresh database and a bucket of its own name."""
    return stack.settings(database_name, database_name.replace("_", "-"))


@pytest.fixture
def service_environment(stack: Stack, database_name: str) -> dict[str, str]:
    """The FUSION_* variables that match `common_settings`."""
    return stack.environment(database_name, database_name.replace("_", "-"))


@pytest.fixture
async def storage(common_settings: CommonSettings) -> AsyncIterator[Storage]:
    async with Storage(common_settings) as storage:
        await storage.ensure_bucket()
        yield storage


@pytest.fixture
def redis_url(stack: Stack) -> str:
    return stack.redis_url


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path
