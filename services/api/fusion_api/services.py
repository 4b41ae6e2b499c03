"""What a process of the API holds and hands to its operations."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from fusion_core.db.pool import Pool, connect_pool
from fusion_core.storage import Storage
from litestar import Litestar
from litestar.datastructures import State

from fusion_api.event_hub import EventHub
from fusion_api.settings import ApiSettings


class Services(NamedTuple):
    pool: Pool
    storage: Storage
    hub: EventHub
    settings: ApiSettings


@asynccontextmanager
async def open_services(app: Litestar) -> AsyncIterator[None]:
    """Litestar's lifespan: connect on start, close on stop."""
    settings: ApiSettings = app.state.settings
    pool = await connect_pool(settings.database_url, application_name="fusion-api", max_size=settings.max_connections)
    try:
        async with Storage(settings) as storage, EventHub(settings.database_url) as hub:
            app.state.services = Services(pool, storage, hub, settings)
            yield
    finally:
        await pool.close()


async def provide_services(state: State) -> Services:
    services: Services = state.services
    return services
