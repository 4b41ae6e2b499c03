"""What jobs need before there are any: accounts with keys, a base model and a dataset, straight into the stores."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from fusion_core.db.migrate import migrate
from fusion_core.db.pool import Connection, connect, queries
from fusion_core.storage import Storage
from fusion_local.stack import Stack

from tests.inputs import TWO_ROWS, Rows, add_base_model, add_key, add_stored_dataset


class Account(NamedTuple):
    """A customer: its key, a dataset of its own, and the base model that its jobs grow."""

    name: str
    id: UUID
    secret: str
    dataset_id: UUID
    base_model_id: UUID


async def prepare(stack: Stack, names: tuple[str, ...]) -> tuple[Account, ...]:
    """Migrate, and make accounts whose base model has no weights: for trainers that read none."""
    await migrate(stack.database_url())
    connection = await connect(stack.database_url(), application_name="faults")
    try:
        async with Storage(stack.settings()) as storage:
            base_model_id = await add_base_model(connection, storage)
            accounts = [await _account(connection, storage, name, base_model_id, TWO_ROWS) for name in names]
    finally:
        await connection.close()
    return tuple(accounts)


async def prepare_engine(stack: Stack, name: str, base_model_id: UUID, texts: Sequence[str]) -> Account:
    """An account for the real trainer, with text to learn."""
    rows = [{"text": text} for text in texts]
    split = {"train": rows[: -len(rows) // 10], "heldout": rows[-len(rows) // 10 :]}
    connection = await connect(stack.database_url(), application_name="faults")
    try:
        async with Storage(stack.settings()) as storage:
            return await _account(connection, storage, name, base_model_id, split)
    finally:
        await connection.close()


async def _account(connection: Connection, storage: Storage, name: str, base_model_id: UUID, rows: Rows) -> Account:
    account = await queries.insert_account(connection, name=name)
    secret = await add_key(connection, account["id"])
    dataset_id = await add_stored_dataset(connection, storage, account["id"], rows)
    return Account(name, account["id"], secret, dataset_id, base_model_id)
