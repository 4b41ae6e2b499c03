"""Requests a minute of one API key, counted in Valkey for all replicas together.

A sliding window over two fixed ones, by the library `limits`. While Valkey is away each replica counts for itself:
better a limit that is too generous than an API that is down.
"""

import math
import time
from uuid import UUID

import structlog
from fusion_http.problem_details import ProblemError
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

log = structlog.get_logger()
_TIMEOUT_S = 0.5
_RETRY_S = 5.0


class RateLimiter:
    """Counts requests of keys; `redis_url` None counts in this process alone."""

    def __init__(self, redis_url: str | None, per_minute: int) -> None:
        self._limit: RateLimitItem = RateLimitItemPerMinute(per_minute)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._connections: ConnectionPool | None = None
        self._shared: SlidingWindowCounterRateLimiter | None = None
        self._shared_again_at = 0.0
        if redis_url is not None:
            self._connections = ConnectionPool.from_url(
                redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
            )
            self._shared = SlidingWindowCounterRateLimiter(_valkey(redis_url, self._connections))

    async def aclose(self) -> None:
        if self._connections is not None:
            await self._connections.disconnect()

    async def hit(self, key_id: UUID) -> dict[str, str]:
        """Count one request; answers its headers. Raises ProblemError rate_limited with Retry-After."""
        if self._shared is not None and time.monotonic() >= self._shared_again_at:
            try:
                return await self._hit(self._shared, str(key_id))
            except (RedisError, OSError) as error:
                self._shared_again_at = time.monotonic() + _RETRY_S
                log.warning("rate_limit_not_shared", error=repr(error), again_in_s=_RETRY_S)
        return await self._hit(self._own, str(key_id))

    async def _hit(self, window: SlidingWindowCounterRateLimiter, key: str) -> dict[str, str]:
        allowed = await window.hit(self._limit, key)
        stats = await window.get_window_stats(self._limit, key)
        wait = str(max(1, math.ceil(stats.reset_time - time.time())))
        headers = {
            "RateLimit-Limit": str(self._limit.amount),
            "RateLimit-Remaining": str(max(0, stats.remaining)),
            "RateLimit-Reset": wait,
        }
        if not allowed:
            detail = f"this key may send {self._limit.amount} requests a minute"
            raise ProblemError("rate_limited", detail, headers=headers | {"Retry-After": wait})
        return headers


def _valkey(url: str, connections: ConnectionPool) -> Storage:
    storage = storage_from_string(
        f"async+{url}",
        implementation="redispy",
        key_prefix="fusion:rate",
        connection_pool=connections,  # type: ignore[arg-type]  # limits' types know no pool of redis 5
    )
    assert isinstance(storage, Storage)  # what the async+ scheme answers
    return storage
