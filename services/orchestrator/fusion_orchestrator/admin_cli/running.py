"""How every command runs: its consoles, its settings, and expected errors as one line that says what to do."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

import asyncpg
import typer
from botocore.exceptions import BotoCoreError, ClientError
from fusion_core.db import migrate
from fusion_core.db.account_deletion import UnknownAccountError
from fusion_core.db.pool import POSTGRES_AWAY, Connection, Pool, connect, connect_pool
from fusion_core.settings import CommonSettings, SettingsError, SettingsT, load
from fusion_core.storage import Storage
from rich.console import Console

from fusion_orchestrator.accounts import AccountError
from fusion_orchestrator.model_folder import BaseModelRejectedError
from fusion_orchestrator.operators import OperatorError

T = TypeVar("T")
_STATEMENT_TIMEOUT_S = 600

_EXPECTED_ERRORS = (
    SettingsError,
    AccountError,
    OperatorError,
    UnknownAccountError,
    migrate.MigrationChangedError,
    migrate.TableInUseError,
    *POSTGRES_AWAY,
    asyncpg.PostgresError,
    BotoCoreError,
    ClientError,
)

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def settings(kind: type[SettingsT] = CommonSettings) -> SettingsT:  # type: ignore[assignment]
    """Ends the command when they are bad."""
    try:
        return load(kind)
    except SettingsError as error:
        fail(str(error))


def run(work: Coroutine[Any, Any, T]) -> T:
    """The answer of a command's work; ends the command on an expected error."""
    try:
        return asyncio.run(work)
    except BaseModelRejectedError as error:
        fail(str(error))
    except _EXPECTED_ERRORS as error:
        fail(f"{type(error).__name__}: {error}")


def fail(message: str) -> NoReturn:
    """Say what is wrong and end with 1."""
    err.print(f"error: {message}", markup=False, style="red")
    raise typer.Exit(1)


@asynccontextmanager
async def connected(common: CommonSettings) -> AsyncIterator[Connection]:
    """For as long as deletions of many rows take."""
    connection = await connect(
        common.direct_url, application_name="fusion-admin", statement_timeout_s=_STATEMENT_TIMEOUT_S
    )
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def stores(common: CommonSettings) -> AsyncIterator[tuple[Pool, Storage]]:
    pool = await connect_pool(common.direct_url, application_name="fusion-admin", max_size=2)
    async with pool, Storage(common) as storage:
        yield pool, storage
