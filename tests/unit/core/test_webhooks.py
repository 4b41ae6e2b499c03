"""Secrets, signatures and the schedule, checked with the reference implementation of Standard Webhooks."""

import json
import time
from uuid import uuid4

import pytest
from fusion_core.db.endings import INTERNAL_TOPICS, WEBHOOK_TOPICS
from fusion_core.webhooks import (
    ALIASES,
    EVENT_TYPES,
    MAX_ATTEMPTS,
    RETRY_DELAYS_S,
    check_key,
    endpoint_secret,
    retry_delay_s,
    shown_secret,
    signed_headers,
    wanted_type,
)
from standardwebhooks import Webhook, WebhookVerificationError

KEY = "k" * 32


def test_every_event_of_the_outbox_can_be_asked_for_and_no_other() -> None:
    internal = {topic for topics in INTERNAL_TOPICS.values() for topic in topics.values()}
    assert set(EVENT_TYPES) == {*WEBHOOK_TOPICS.values(), *internal}
    assert set(ALIASES.values()) <= set(EVENT_TYPES)


def test_a_secret_belongs_to_one_key_endpoint_and_version() -> None:
    endpoint = uuid4()
    secrets = {
        endpoint_secret(KEY, endpoint, 1),
        endpoint_secret(KEY, endpoint, 2),
        endpoint_secret(KEY, uuid4(), 1),
        endpoint_secret(KEY[::-1] + "x", endpoint, 1),
    }
    assert len(secrets) == 4
    assert endpoint_secret(KEY, endpoint, 1) in secrets
    assert {len(secret) for secret in secrets} == {32}


def test_the_reference_verifies_what_we_sign_with_each_valid_secret() -> None:
    old, new, other = (endpoint_secret(KEY, uuid4(), 1) for _ in range(3))
    body = json.dumps({"type": "job.completed"}).encode()
    headers = signed_headers("job:7", int(time.time()), body, [new, old])
    for secret in (old, new):
        assert Webhook(shown_secret(secret)).verify(body, headers) == {"type": "job.completed"}
    with pytest.raises(WebhookVerificationError):
        Webhook(shown_secret(other)).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(shown_secret(new)).verify(body + b" ", headers)


def test_ten_attempts_over_about_seventy_five_hours() -> None:
    assert MAX_ATTEMPTS == 10
    assert sum(RETRY_DELAYS_S) / 3600 == pytest.approx(75.6, abs=0.1)
    for attempts, delay_s in enumerate(RETRY_DELAYS_S, 1):
        seen = {retry_delay_s(attempts) for _ in range(20)}
        assert len(seen) > 1, "no jitter"
        assert all(one is not None and 0.9 * delay_s <= one <= 1.1 * delay_s for one in seen)
    assert retry_delay_s(MAX_ATTEMPTS) is None
    assert retry_delay_s(MAX_ATTEMPTS, 5) is None


def test_retry_after_postpones_within_bounds_and_never_hastens() -> None:
    assert retry_delay_s(1, 60) == 60
    assert retry_delay_s(1, 10**9) == 24 * 3600
    assert (retry_delay_s(9, 1) or 0) > 20 * 3600


def test_an_alias_is_used_only_by_those_who_ask_for_it_alone() -> None:
    assert wanted_type("job.completed", ["training.completed"]) == "training.completed"
    assert wanted_type("job.completed", ["training.completed", "job.completed"]) == "job.completed"
    assert wanted_type("job.completed", ["job.failed"]) is None


def test_a_short_key_is_refused() -> None:
    check_key(None)
    check_key(KEY)
    with pytest.raises(ValueError, match="32 characters"):
        check_key("short")
