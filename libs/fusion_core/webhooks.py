"""Webhooks without I/O: the events, an endpoint's secrets, the signature, and when a delivery is tried again.

Signature, headers and spacing follow Standard Webhooks 1.0 (https://www.standardwebhooks.com).
"""

import base64
import hashlib
import hmac
import random
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

import msgspec

EventType = Literal[
    "job.started",
    "job.checkpoint",
    "job.completed",
    "job.failed",
    "job.cancelled",
    "job.stopped",
    "dataset.ready",
    "dataset.failed",
]
EVENT_TYPES: tuple[str, ...] = get_args(EventType)
# Names of other platforms for events of ours: an endpoint that asks for one gets the event under that name.
ALIASES = {"training.completed": "job.completed", "training.failed": "job.failed"}
TEST_EVENT = "webhook.test"

SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with is public
MIN_KEY_LENGTH = 32
SECRET_OVERLAP_S = 24 * 3600

# Seconds from one attempt to the next: ten attempts over about 75 hours.
RETRY_DELAYS_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
MAX_ATTEMPTS = len(RETRY_DELAYS_S) + 1
MAX_RETRY_AFTER_S = 24 * 3600
_JITTER = 0.1
SHORTEST_SCHEDULE_S = sum(RETRY_DELAYS_S) * (1 - _JITTER)


class Message(msgspec.Struct, frozen=True):
    """The body of a webhook. Built from the same row at every attempt, so that its bytes are the same each time."""

    type: str
    timestamp: datetime
    data: dict[str, Any]


def check_key(key: str | None) -> None:
    """Raises ValueError for a key too short to derive secrets from; None means that webhooks are off."""
    if key is not None and len(key) < MIN_KEY_LENGTH:
        raise ValueError(f"FUSION_WEBHOOK_KEY needs {MIN_KEY_LENGTH} characters or more: openssl rand -base64 32")


def endpoint_secret(key: str, endpoint_id: UUID, version: int) -> bytes:
    """The 32 bytes that sign an endpoint's messages, derived from the server's key by HMAC-SHA256 (RFC 2104).

    Nothing of it is stored: whoever reads the database learns no secret.
    """
    context = b"fusion webhook endpoint" + endpoint_id.bytes + version.to_bytes(4, "big")
    return hmac.digest(key.encode(), context, hashlib.sha256)


def shown_secret(secret: bytes) -> str:
    """As the customer gets it: `whsec_` and base64."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def signed_headers(message_id: str, timestamp_s: int, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """The three headers of Standard Webhooks, with one signature for each secret that is valid now."""
    content = f"{message_id}.{timestamp_s}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode() for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def wanted_type(topic: str, event_types: Collection[str]) -> str | None:
    """Under which name an endpoint gets an event: its own if the endpoint asks for that, else an alias, else None."""
    if topic in event_types:
        return topic
    return next((alias for alias, event in ALIASES.items() if event == topic and alias in event_types), None)


def retry_delay_s(attempts: int, retry_after_s: float | None = None) -> float | None:
    """Seconds until the attempt after the `attempts`-th, with jitter; None: that was the last.

    A receiver's Retry-After postpones the attempt, by a day at most; it never hastens it.
    """
    if attempts >= MAX_ATTEMPTS:
        return None
    spread = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, hides nothing
    return max(RETRY_DELAYS_S[attempts - 1] * spread, min(retry_after_s or 0.0, MAX_RETRY_AFTER_S))
