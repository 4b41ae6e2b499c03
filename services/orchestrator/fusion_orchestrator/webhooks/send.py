"""One attempt over HTTP: POST, signed, to a checked address, with a deadline; the answer is read up to a limit.

What the answer means: 2xx delivered; 410 the endpoint is gone; anything else, redirects included, is tried again.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version

import aiohttp
import msgspec
import structlog
from fusion_core.db.webhooks import SNIPPET_LENGTH, Answer, Delivery
from fusion_core.webhook_targets import RefusedTargetError, TargetPolicy
from fusion_core.webhooks import MAX_ATTEMPTS, endpoint_secret, retry_delay_s, signed_headers
from yarl import URL

from fusion_orchestrator.webhooks.target import LookUp, checked_addresses, look_up, pinned_connector

DEADLINE_S = 15.0
_CONNECT_DEADLINE_S = 5.0
_BODY_DEADLINE_S = 3.0
_MAX_READ = 64 * 1024
_MAX_ERROR_LENGTH = 500
_GONE = 410
_HONOUR_RETRY_AFTER = (429, 503)
_USER_AGENT = f"Fusion-Webhooks/{version('fusion')}"

log = structlog.get_logger()


class Sender:
    """Sends deliveries. Holds the key that endpoints' secrets are derived from, and the policy of where to connect."""

    def __init__(
        self, key: str, policy: TargetPolicy, *, tls: ssl.SSLContext | None = None, look_up: LookUp = look_up
    ) -> None:
        self._key = key
        self._policy = policy
        self._tls = tls or ssl.create_default_context()
        self._look_up = look_up

    async def send(self, delivery: Delivery) -> Answer:
        """Make the attempt; every failure is an answer, none is raised."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._post(delivery)
        except RefusedTargetError as refused:
            return _failure(delivery, f"refused: {refused}")
        except TimeoutError:
            return _failure(delivery, f"no complete answer within {DEADLINE_S:.0f} seconds")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _failure(delivery, f"{type(error).__name__}: {error}")
        except Exception:  # a bug of ours must not send one message for ever: it keeps to the schedule too
            log.exception("webhook_attempt_broke", delivery_id=str(delivery.id))
            return _failure(delivery, "something broke on our side")

    async def _post(self, delivery: Delivery) -> Answer:
        url = URL(delivery.url)
        connector = pinned_connector(await checked_addresses(url, self._policy, self._look_up), self._tls)
        body = msgspec.json.encode(delivery.message)
        secrets = [endpoint_secret(self._key, delivery.endpoint_id, one) for one in delivery.secret_versions]
        headers = signed_headers(delivery.message_id, int(time.time()), body, secrets)
        async with (
            aiohttp.ClientSession(
                connector=connector,
                trust_env=False,
                auto_decompress=False,  # a small answer that unpacks to gigabytes is kept packed
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=DEADLINE_S, sock_connect=_CONNECT_DEADLINE_S),
                headers={"User-Agent": _USER_AGENT, "Content-Type": "application/json", "Accept-Encoding": "identity"},
            ) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            return meaning(delivery, response.status, await _snippet(response), response.headers)


def meaning(delivery: Delivery, status: int, snippet: str, headers: Mapping[str, str]) -> Answer:
    """What a receiver's answer means for the delivery."""
    if 200 <= status < 300:
        return Answer(outcome="delivered", status=status, snippet=snippet)
    if status == _GONE:
        return Answer(outcome="gone", status=status, snippet=snippet, error="410: the receiver is gone for good")
    retry_after_s = _retry_after_s(headers.get("Retry-After")) if status in _HONOUR_RETRY_AFTER else None
    redirected = "; redirects are not followed" if 300 <= status < 400 else ""
    return _failure(delivery, f"answered {status}{redirected}", status, snippet, retry_after_s)


def _failure(
    delivery: Delivery,
    error: str,
    status: int | None = None,
    snippet: str | None = None,
    retry_after_s: float | None = None,
) -> Answer:
    attempts = MAX_ATTEMPTS if delivery.is_test else delivery.attempts  # a test is tried once
    retry_s = retry_delay_s(attempts, retry_after_s)
    return Answer(
        outcome="failed" if retry_s is None else "retry",
        retry_s=retry_s,
        status=status,
        snippet=snippet,
        error=_storable(error)[:_MAX_ERROR_LENGTH],
    )


async def _snippet(response: aiohttp.ClientResponse) -> str:
    """The first 4 KiB of the answer as text. The status has decided already: a body that is too long (64 KiB), too
    slow or broken off is kept as far as it came."""
    kept, read = b"", 0
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(_BODY_DEADLINE_S):
            async for chunk in response.content.iter_chunked(8192):
                kept += chunk[: SNIPPET_LENGTH - len(kept)]
                read += len(chunk)
                if read >= _MAX_READ:
                    break
    return _storable(kept.decode("utf-8", "replace"))


def _storable(text: str) -> str:
    """As Postgres takes it: no NUL, and no lone surrogates, which aiohttp makes of bytes that are no UTF-8."""
    return text.replace("\0", "?").encode("utf-8", "replace").decode()


def _retry_after_s(value: str | None) -> float | None:
    """Retry-After as seconds (RFC 9110): a number, or a date. None where it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):  # the latter for a year of twenty digits
        return None
