"""What a process of the API holds and hands to its operations."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from fusion_core.db.pool import Pool, close_pool, connect_pool
from fusion_core.storage import Storage
from litestar import Litestar
from litestar.datastructures import State

from fusion_api.event_hub import EventHub
from fusion_api.rate_limit import RateLimiter
from fusion_api.settings import ApiSettings


class Services(NamedTuple):
    pool: Pool
    storage: Storage
    hub: EventHub
    limiter: RateLimiter
    settings: ApiSettings


@asynccontextmanager
async def open_services(app: Litestar) -> AsyncIterator[None]:
    """Litestar's lifespan: connect on start, close on stop."""
    settings: ApiSettings = app.state.settings
    async with AsyncExitStack() as stack:
        pool = await connect_pool(
            settings.database_url,
            application_name="fusion-api",
            min_size=0,  # Postgres may be away: /ready says so
            max_size=settings.max_connections,
            prepared=settings.prepared_statements,
            statement_timeout_s=settings.answer_deadline_s,  # nobody waits any longer
        )
        stack.push_async_callback(close_pool, pool)
        limiter = RateLimiter(settings.redis_url, settings.requests_per_minute)
        stack.push_async_callback(limiter.aclose)
        storage = await stack.enter_async_context(Storage(settings))
        hub = await stack.enter_async_context(EventHub(settings.direct_url))
        app.state.metrics.watch(pool, hub)
        app.state.services = Services(pool, storage, hub, limiter, settings)
        yield


async def provide_services(state: State) -> Services:
    services: Services = state.services
    return services
